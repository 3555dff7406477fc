"""Photographs as CLIP was trained on them: the shorter side resized to the network's size, the middle square cut out."""

import numpy as np
from PIL import Image


def centre_square(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H,W,3] -> uint8 [size,size,3]: PIL's bicubic on the shorter side, then the centre (OpenAI's `_transform`).

    The longer side is rounded down, and an odd surplus is cut as torchvision's CenterCrop does, half to even.
    """
    height, width = image.shape[:2]
    shorter = min(height, width)
    resized = (size * width // shorter, size * height // shorter)
    picture = Image.fromarray(image)
    if resized != picture.size:
        picture = picture.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def stretched(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 RGB [H,W,3] -> uint8 [height,width,3] of `size` = (height, width), the whole picture, PIL's bicubic."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
