"""What every data set is: random access by index, a label space, a deterministic repr, and an optional memory of decoded examples."""

import copy

import numpy as np

from segjax.data.label_spaces import LabelSpace
from segjax.errors import DataError

Example = dict
"""{"image": uint8 [H,W,3] RGB, "label": uint8 [H,W] train ids with 255 = ignore (absent when unlabelled), "name": str}."""


class Dataset:
    """Random-access examples: `len(ds)`, `ds[i] -> Example`, `ds.label_space`, `ds.labelled`, `ds.unlabelled()`.

    `ds.name(i)` reads nothing; `ds.label(i)` and `ds.image(i)` decode that half alone and equal `ds[i]["label"]` and `ds[i]["image"]`.
    A subclass gives `__len__`, `__repr__` (deterministic) and `_load(index)`, and `_name`, `_image`, `_label` and `_image_size` where they
    are cheaper than the whole example (index in 0 .. len - 1 for all of them). With `cache=True` each example stays in memory once loaded
    (arrays read-only, every worker process with its own copy): worth it when the decoded set fits, as in runs on a CPU.
    """

    label_space: LabelSpace
    labelled: bool = True

    def __init__(self, cache: bool = False):
        self._cache: dict[int, Example] | None = {} if cache else None

    def __len__(self) -> int:
        raise NotImplementedError

    def _load(self, index: int) -> Example:
        raise NotImplementedError

    def _name(self, index: int) -> str:
        return self._load(index)["name"]

    def _image(self, index: int) -> np.ndarray:
        return self._load(index)["image"]

    def _label(self, index: int) -> np.ndarray:
        return self._load(index)["label"]

    def _image_size(self, index: int) -> tuple[int, int]:
        height, width = self._image(index).shape[:2]
        return height, width

    def __getitem__(self, index: int) -> Example:
        index = self._position(index)
        if self._cache is None:
            return self._load(index)
        if index not in self._cache:
            example = self._load(index)
            for value in example.values():
                if hasattr(value, "setflags"):
                    value.setflags(write=False)
            self._cache[index] = example
        return dict(self._cache[index])

    def name(self, index: int) -> str:
        """The example's name, unique in the data set, without decoding a file."""
        return self._name(self._position(index))

    def image(self, index: int) -> np.ndarray:
        """The example's image, uint8 [H,W,3]; its label is not read."""
        index = self._position(index)
        return self._cache[index]["image"] if self._cache and index in self._cache else self._image(index)

    def label(self, index: int) -> np.ndarray:
        """The example's label, uint8 [H,W] train ids with 255 = ignore; its image is not read. DataError when the set is unlabelled."""
        index = self._position(index)
        if not self.labelled:
            raise DataError(f"{self!r} is unlabelled, so {self._name(index)} has no label: set the labels folder, or labelled=True")
        return self._cache[index]["label"] if self._cache and index in self._cache else self._label(index)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the example's image; a file's header is enough where there is one."""
        index = self._position(index)
        height, width = self._cache[index]["image"].shape[:2] if self._cache and index in self._cache else self._image_size(index)
        return height, width

    def encoded_image(self, index: int) -> bytes | None:
        """The image file's own bytes when decoding them gives exactly `image(index)` (upright 8-bit RGB, no resize), else None."""
        return None

    def _position(self, index: int) -> int:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        return index % len(self)

    def unlabelled(self) -> "Dataset":
        """The same images without labels. The labels are not merely dropped: they are never read."""
        other = copy.copy(self)
        other.labelled = False
        other._cache = None if self._cache is None else {}
        return other

    def __getstate__(self):
        # A worker process starts with an empty memory: shipping decoded images through a pipe costs more than decoding them.
        return self.__dict__ | {"_cache": None if self._cache is None else {}}
