"""Geometry on the host: resize, random scale, crop and flip of an image and its label together. Colour changes happen on the device."""

import numpy as np
from PIL import Image

from segjax.errors import DataError
from segjax.typing import IGNORE


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


def check_crop(crop: tuple[int, int], height: int, width: int, name: str) -> None:
    """DataError when a crop (height, width) exceeds an image at scale 1."""
    if crop[0] > height or crop[1] > width:
        raise DataError(f"crop {crop[1]}x{crop[0]} is larger than {width}x{height} in {name}: lower data.crop or set data.resize")


def random_crop(
    rng: np.random.Generator, example: dict, crop: tuple[int, int], *, scale: tuple[float, float] = (1.0, 1.0), flip: bool = True
) -> dict:
    """Scale at random, crop at random, flip left-right with probability one half.

    example: image uint8 [H,W,3], optional label uint8 [H,W], name. crop: (height, width). scale: uniform factor in [lo, hi].
    Image bilinear, label nearest, both cut straight from the original (no scaled copy of the whole image is made). Where the scaled image
    is smaller than the crop, the rest is black and its label 255. Every call draws the same count of numbers, whatever the knobs.
    Returns {"image", "label"?}. DataError when the crop exceeds the image at scale 1.
    """
    image, label = example["image"], example.get("label")
    height, width = image.shape[:2]
    check_crop(crop, height, width, example.get("name", "an image"))
    factor = rng.uniform(scale[0], scale[1])
    place_y, place_x, coin = rng.random(3)
    scaled = (max(1, round(height * factor)), max(1, round(width * factor)))
    span_y = _span(place_y, crop[0], scaled[0])
    span_x = _span(place_x, crop[1], scaled[1])
    mirrored = slice(None, None, -1) if flip and coin < 0.5 else slice(None)

    def cut(pixels: np.ndarray, resample: Image.Resampling, fill: int) -> np.ndarray:
        (y, into_y, h), (x, into_x, w) = span_y, span_x
        if scaled == (height, width):
            piece = pixels[y : y + h, x : x + w]
        else:
            by, bx = height / scaled[0], width / scaled[1]
            box = (x * bx, y * by, min((x + w) * bx, width), min((y + h) * by, height))
            piece = np.asarray(Image.fromarray(pixels).resize((w, h), resample, box=box))
        if (h, w) != tuple(crop):
            canvas = np.full(tuple(crop) + pixels.shape[2:], fill, np.uint8)
            canvas[into_y : into_y + h, into_x : into_x + w] = piece
            piece = canvas
        return np.ascontiguousarray(piece[:, mirrored])

    result = {"image": cut(image, Image.Resampling.BILINEAR, 0)}
    if label is not None:
        result["label"] = cut(label, Image.Resampling.NEAREST, IGNORE)
    return result


def _span(place: float, crop: int, size: int) -> tuple[int, int, int]:
    """(first pixel in the scaled image, offset in the crop, length) along one axis; place in [0, 1)."""
    slack = int(place * (abs(size - crop) + 1))
    return (slack, 0, crop) if size >= crop else (0, slack, size)
