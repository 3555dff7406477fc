"""The borders of target pictures in which pseudo-labels do not count, carried with the images through crop and flip."""

import numpy as np

from segjax.data.dataset import Dataset, Example
from segjax.data.relabelled import Relabelled
from segjax.errors import ConfigError
from segjax.typing import IGNORE


class Margins(Relabelled):
    """The images of `dataset` with "labels" that say where they are to be trusted: 255 within so many pixels of a border, 0 elsewhere.

    As a target with `data.target_labels=True` they are cropped and flipped like the image, and what a crop pads is 255: HRDA's mask (top
    30, bottom 240, left 30, right 30 of a Cityscapes frame of 2048x1024: sky rim, ego car). Labels that `dataset` has are never read.
    Margins hold at the size that `dataset` has. ConfigError: margins that leave nothing of its first image, or are negative.
    Source: crop_pseudo_margins of lhoyer/HRDA, mmseg/datasets/custom.py and experiments.py.
    """

    def __init__(self, dataset: Dataset, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0, cache: bool = False):
        super().__init__(dataset, cache)
        self.margins = (top, bottom, left, right)
        if len(dataset):
            height, width = dataset.image_size(0)
            if min(self.margins) < 0 or top + bottom >= height or left + right >= width:
                raise ConfigError(
                    f"margins top={top} bottom={bottom} left={left} right={right} of {width}x{height}: expected 0 or more, less than that"
                )

    def __repr__(self) -> str:
        return f"Margins({self.dataset!r}, {self.margins})"

    def _label(self, index: int) -> np.ndarray:
        return self._inside(self._image_size(index))

    def _inside(self, size: tuple[int, int]) -> np.ndarray:
        (height, width), (top, bottom, left, right) = size, self.margins
        label = np.full(size, IGNORE, np.uint8)
        label[top : height - bottom, left : width - right] = 0
        return label

    def _load(self, index: int) -> Example:
        image = self._image(index)
        example = {"image": image, "name": self._name(index)}
        return example | ({"label": self._inside((image.shape[0], image.shape[1]))} if self.labelled else {})
