"""What is wrong with one example of a data set: its two files examined together, or the example as a training would load it."""

import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from segjax.data import check_image, check_label, encodings
from segjax.data.dataset import Dataset
from segjax.data.faults import Fault
from segjax.data.files import BadIds, SizeMismatch
from segjax.data.folders import FolderDataset
from segjax.errors import DataError
from segjax.typing import IGNORE

Outcome = tuple[tuple[int, int] | None, np.ndarray | None, list[Fault]]
"""Of one example: the image's (height, width), pixels of each train id int [256], faults. Never its pixels, which would fill the memory."""


def examiner(dataset: Dataset) -> Callable[[int], Outcome]:
    """The function of an index that examines an example: by its files where the data set is made of files and reads them plainly."""
    if isinstance(dataset, FolderDataset) and type(dataset)._load is FolderDataset._load:
        return Files(dataset)
    return Decoded(dataset)


class Decoded:
    """Examines an example of any data set by loading it as a training would."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, index: int) -> Outcome:
        try:
            example = self.dataset[index]
        except DataError as error:
            kind = {SizeMismatch: "size", BadIds: "label_ids"}.get(type(error), "unreadable")
            return None, None, [Fault(kind, self.dataset.name(index), str(error))]
        label = example.get("label")
        if label is None:
            return example["image"].shape[:2], None, []
        histogram = np.bincount(label.ravel(), minlength=256)
        return example["image"].shape[:2], histogram, _ignored(example["name"], histogram)


class Files:
    """Examines the two files of an example: what they hold, and not only what a training would make of them."""

    def __init__(self, dataset: FolderDataset):
        self.dataset, self.space, self.stored = dataset, dataset.label_space, dataset.stored
        self.table = encodings.decode_table(self.space, self.stored)
        self.valid = encodings.valid_ids(self.space, self.stored)

    def __call__(self, index: int) -> Outcome:
        image, label = self.dataset.pairs[index]
        header, faults = check_image.image_faults(image)
        size = header.upright if header else None
        if not self.dataset.labelled or label is None:
            return size, None, faults
        try:
            raw = self.dataset.raw_label(index)
        except BadIds as error:
            return size, None, [*faults, Fault("label_ids", str(label), str(error).removeprefix(f"{label}: "))]
        except DataError as error:
            return size, None, [*faults, check_label.format_fault(label, self.space, error)]
        if header and (misfit := check_image.size_faults(image, header, label, raw.shape)):
            faults += misfit
            size = None if misfit[0].wrong else size  # a wrong size says nothing about the sizes of the set
        histogram = np.bincount(raw.ravel(), minlength=256)
        fault = self._label_fault(label, raw, histogram)
        if fault and fault.wrong:
            return size, None, [*faults, fault]
        decoded = np.bincount(self.table, histogram, minlength=256).astype(np.int64)
        return size, decoded, [*faults, *([fault] if fault else _ignored(str(label), decoded))]

    def _label_fault(self, path: pathlib.Path, raw: np.ndarray, histogram: np.ndarray) -> Fault | None:
        if self.stored.colours:
            return None
        with Image.open(path) as image:
            kind, mode, palette = image.format or "", image.mode, image.getpalette() if image.mode == "P" else None
        return (
            check_label.lossy_fault(path, kind, mode)
            or check_label.id_fault(path, raw, histogram, self.valid, self.space, self.stored)
            or (check_label.palette_fault(path, palette, histogram, self.table, self.space) if palette else None)
        )


def _ignored(name: str, histogram: np.ndarray) -> list[Fault]:
    if histogram[IGNORE] < histogram.sum():
        return []
    return [
        Fault("label_ignored", name, "nothing but ignore", "an empty mask, or another encoding", "exclude it, or set `encoding`", False)
    ]
