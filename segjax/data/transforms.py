"""Whole images and labels taken to another size, on the host."""

import numpy as np
from PIL import Image


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of uint8 [H,W,3] to (height, width), half-pixel centres, antialiased when it shrinks (PIL's)."""
    height, width = size
    same = image.shape[:2] == (height, width)
    return image if same else np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize of uint8 [H,W] to (height, width), half-pixel centres: never makes a value that was not there."""
    height, width = size
    same = label.shape == (height, width)
    return label if same else np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
