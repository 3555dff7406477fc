"""Reading records that `segjax data build` wrote: the same arrays as the raw data set gives, from a few large files."""

import io
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from segjax.data import label_spaces
from segjax.data.dataset import Dataset, Example
from segjax.data.pairing import Choice
from segjax.data.transforms import Size, checked, resize_image, resize_label
from segjax.errors import DataError
from segjax.typing import IGNORE

METADATA = "segjax.json"
"""The file beside the records: label space, and each split's source, fingerprint and names."""


class RecordDataset(Dataset):
    """One split of a TFDS directory of ArrayRecord files, read by `tfds` (no TensorFlow).

    split: as written. label_space: another one that the recorded train ids are carried over to (`label_spaces.mapping`); default as
    written. include, exclude, names, resize, labelled, cache: as FolderDataset. Workers open the files themselves.
    Raises DataError: no such records or split, and on reading: a damaged record.
    """

    def __init__(
        self,
        directory: str,
        *,
        split: str = "train",
        label_space=None,
        include=(),
        exclude=(),
        names=None,
        resize: Size | None = None,
        labelled: bool = True,
        cache: bool = False,
    ):
        super().__init__(cache)
        self.directory, self.split = pathlib.Path(directory), split
        metadata = _read_metadata(self.directory)
        if split not in metadata["splits"]:
            raise DataError(f"{directory} has no split {split!r}, expected one of {', '.join(metadata['splits'])}")
        recorded = label_spaces.LabelSpace(
            metadata["label_space"]["name"],
            tuple(metadata["label_space"]["classes"]),
            tuple((r, g, b) for r, g, b in metadata["label_space"]["palette"]),
        )
        self.label_space = label_spaces.get(label_space or recorded)
        self._table: np.ndarray | None = None
        if self.label_space != recorded:
            self._table = np.full(256, IGNORE, np.uint8)
            self._table[: recorded.num_classes] = label_spaces.mapping(recorded, self.label_space)
        self._has_labels: bool = metadata["labelled"]
        self.labelled = labelled and self._has_labels
        self.resize = checked(resize, "resize")
        choose = Choice(include, exclude, names)
        stored = metadata["splits"][split]["names"]
        self._rows = [row for row, name in enumerate(stored) if choose(pathlib.PurePath(name).name)]
        if not self._rows:
            raise DataError(f"no example left in {directory}: of {len(stored)} in {split}, {choose} keep none; check the filters")
        self._names = [stored[row] for row in self._rows]
        self._source = None

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"RecordDataset({self.directory}, {self.split}, {len(self)} examples, {self.label_space.name}, "
            f"resize={self.resize}, labelled={self.labelled})"
        )

    def __getstate__(self):
        return super().__getstate__() | {"_source": None}

    def encoded_image(self, index: int) -> bytes | None:
        return None if self.resize else self._record(self._position(index))["image"]

    def _name(self, index: int) -> str:
        return self._names[index]

    def _image(self, index: int) -> np.ndarray:
        return self._decode_image(self._record(index), index)

    def _label(self, index: int) -> np.ndarray:
        return self._decode_label(self._record(index), index)

    def _load(self, index: int) -> Example:
        record = self._record(index)
        example = {"image": self._decode_image(record, index), "name": self._names[index]}
        return example | {"label": self._decode_label(record, index)} if self.labelled else example

    def _record(self, index: int) -> dict:
        """One record's fields, image and label still encoded."""
        if self._source is None:
            self._source = _open(self.directory, self.split, self._has_labels)
        try:
            return self._source[self._rows[index]]
        except Exception as error:  # the reader's C++ raises whatever a damaged file leads it into
            raise self._damaged(index, error) from error

    def _decode_image(self, record: dict, index: int) -> np.ndarray:
        image = self._pixels(record["image"], index)
        return resize_image(image, self.resize) if self.resize else image

    def _decode_label(self, record: dict, index: int) -> np.ndarray:
        label = self._pixels(record["label"], index)
        label = label if self._table is None else self._table[label]
        return resize_label(label, self.resize) if self.resize else label

    def _pixels(self, encoded: bytes, index: int) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                return np.array(image)
        except Exception as error:  # PIL raises whatever damaged bytes lead it into
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> DataError:
        return DataError(
            f"record {self._rows[index]} ({self._names[index]}) of {self.directory} split {self.split} cannot be read "
            f"({' '.join(str(error).split())}): write the records again with `segjax data build`"
        )


def _read_metadata(directory: pathlib.Path) -> dict:
    try:
        return json.loads((directory / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory} holds no records ({METADATA}: {error}): write them with `segjax data build`") from error


def _open(directory: pathlib.Path, split: str, labelled: bool):
    # Imported here: it costs two seconds, and a process that only lists or pickles the data set never needs it.
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(str(directory))  # its decorators hide what as_data_source takes
        skip = tfds.decode.SkipDecoding()
        return builder.as_data_source(split=split, decoders={"image": skip, "label": skip} if labelled else {"image": skip})
    except Exception as error:  # TFDS and its reader raise many kinds for missing and damaged files
        message = " ".join(str(error).split())
        raise DataError(f"{directory} split {split} cannot be opened ({message}): write it again with `segjax data build`") from error
