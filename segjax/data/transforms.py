"""Whole images and labels taken to another size, on the host."""

from typing import TypeAlias

import numpy as np
from PIL import Image

from segjax.errors import ConfigError

Size: TypeAlias = int | tuple[int, int]
"""(height, width), or the length of the shorter edge, the ratio kept."""


def fitted(own: tuple[int, int], size: Size) -> tuple[int, int]:
    """The (height, width) to which `size` takes an image of `own`. Rounded as detectron2's ResizeShortestEdge."""
    if not isinstance(size, int):
        return size
    height, width = (int(side * (size / min(own)) + 0.5) for side in own)
    return height, width


def checked(size: Size | None, name: str) -> Size | None:
    """The size as a tuple or a number, None for none. ConfigError, which calls it `name`: neither."""
    pair = (size, size) if isinstance(size, int) else tuple(size or (1, 1)) if isinstance(size or (), tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{name}={size!r}: expected (height, width) in pixels, or the length of the shorter edge")
    return size if isinstance(size, int) or not size else pair


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear resize of uint8 [H,W,3], half-pixel centres, antialiased when it shrinks (PIL's)."""
    height, width = fitted((image.shape[0], image.shape[1]), size)
    same = image.shape[:2] == (height, width)
    return image if same else np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_label(label: np.ndarray, size: Size) -> np.ndarray:
    """Nearest resize of uint8 [H,W], half-pixel centres: never makes a value that was not there."""
    height, width = fitted((label.shape[0], label.shape[1]), size)
    same = label.shape == (height, width)
    return label if same else np.array(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))
