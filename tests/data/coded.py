"""A data set whose pixels say which example they come from, for tests of orders. A module of its own, so that worker processes find it."""

import numpy as np

from segjax.data.dataset import Dataset
from segjax.data.label_spaces import get
from segjax.errors import DataError


class Coded(Dataset):
    """Image i is filled with first + i (red) and pixel positions; its label holds the same number. Counts label reads.

    bad: indices that cannot be read. classes: index -> uint8 [h,w] label instead.
    """

    label_space = get("cityscapes19")

    def __init__(self, length, size=(12, 16), labelled=True, bad=(), first=0, classes=None):
        super().__init__()
        self.length, self.size, self.labelled, self.bad, self.first, self.classes = length, size, labelled, tuple(bad), first, classes
        self.label_reads = []

    def __len__(self):
        return self.length

    def __repr__(self):
        return f"Coded({self.length}, {self.size}, {self.first})"

    def _name(self, index):
        return f"{self.first + index}.png"

    def _load(self, index):
        if index in self.bad:
            raise DataError(f"{self._name(index)} cannot be read")
        y, x = np.mgrid[: self.size[0], : self.size[1]].astype(np.uint8)
        example = {"image": np.stack([np.full_like(y, self.first + index), y, x], -1), "name": self._name(index)}
        if self.labelled:
            self.label_reads.append(index)
            example["label"] = np.full(self.size, self.first + index, np.uint8) if self.classes is None else self.classes(index, self.size)
        return example


def rare(index, size):
    """Class 0, a corner of class 1 in every third image, ignore in the last column."""
    label = np.zeros(size, np.uint8)
    label[:4, :4] = index % 3 == 0
    label[:, -1] = 255
    return label
