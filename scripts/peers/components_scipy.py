"""The yardstick of `scripts/bench_components.py`: scipy.ndimage.label of every class's mask, one after the other."""

import numpy as np
from scipy import ndimage


def components(label: np.ndarray) -> list[np.ndarray]:
    """The component numbers of each class of label int [H,W]."""
    return [ndimage.label(label == k)[0] for k in np.unique(label)]


def first_pixels(label: np.ndarray) -> np.ndarray:
    """The first pixel, row * W + column, of every pixel's component: what `segjax.ops.components` answers."""
    found = np.zeros(label.shape, np.int64)
    for marks in components(label):
        first = ndimage.minimum(np.arange(label.size).reshape(label.shape), marks, np.arange(1, marks.max() + 1))
        found[marks > 0] = np.asarray(first, np.int64)[marks[marks > 0] - 1]
    return found
