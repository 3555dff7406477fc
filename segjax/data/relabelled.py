"""Data sets of another one's images with labels of their own."""

import numpy as np

from segjax.data.dataset import Dataset


class Relabelled(Dataset):
    """The images of `dataset`, whose own labels are never read. A subclass gives `_label`, and `_load` where that should agree with it."""

    def __init__(self, dataset: Dataset, cache: bool = False):
        super().__init__(cache)
        self.dataset, self.label_space = dataset.unlabelled(), dataset.label_space

    def __len__(self) -> int:
        return len(self.dataset)

    def _name(self, index: int) -> str:
        return self.dataset.name(index)

    def _image(self, index: int) -> np.ndarray:
        return self.dataset.image(index)

    def _image_size(self, index: int) -> tuple[int, int]:
        return self.dataset.image_size(index)

    def encoded_image(self, index: int) -> bytes | None:
        return self.dataset.encoded_image(index)
