"""Reading one image or one label file, with an error that names it when it is not what it should be."""

import pathlib

import numpy as np
from PIL import Image, ImageOps

from segjax.errors import DataError


class Unreadable(DataError):
    """A file that is missing, damaged or of the wrong kind."""


class SizeMismatch(DataError):
    """A label whose size is not its image's."""


class BadIds(DataError):
    """A label with values that its encoding does not know."""


def read_image(path: "str | pathlib.Path") -> np.ndarray:
    """Read a photograph as RGB uint8 [H,W,3], upright. DataError when damaged, not an image, or deeper than 8 bits."""
    with _open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise Unreadable(f"{path} has mode {image.mode} (more than 8 bits a channel), expected an 8-bit image: convert it to 8 bits")
        try:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception as error:  # PIL raises whatever a damaged file leads it into
            raise _damaged(path, error) from error


def read_label(path: "str | pathlib.Path") -> np.ndarray:
    """Read a label PNG's values as stored, uint8 [H,W]: grey values or palette indices, never converted.

    (`convert("L")` turns palette indices into brightness and clips 16-bit ids to 255 = ignore, both silently.)
    DataError when the file is damaged, a colour picture, or 16 bits deep.
    """
    with _open(path) as image:
        if image.mode not in ("L", "P"):
            what = "a colour picture" if image.mode in ("RGB", "RGBA", "CMYK", "LA") else f"mode {image.mode}"
            raise Unreadable(
                f"{path} is {what} ({image.mode}), expected one 8-bit channel of ids (PNG mode L or P): "
                f"use the id file of the data set (not colour, not instance ids) or write the ids as 8-bit grey"
            )
        try:
            return np.array(image)
        except Exception as error:  # PIL raises whatever a damaged file leads it into
            raise _damaged(path, error) from error


def _open(path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise Unreadable(f"{path} does not exist: check the list file or the folder") from error
    except (PermissionError, IsADirectoryError) as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror}), expected an image file: give read access, or exclude it") from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path, error: Exception) -> Unreadable:
    size = pathlib.Path(path).stat().st_size
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    if size == 0:
        why = "the file is empty"
    elif head.startswith((b"<!doctype", b"<html")):
        why = "it is an HTML page, not an image (a download that needed a login?)"
    else:
        why = f"{' '.join(str(error).split())} (damaged or cut off)"
    return Unreadable(f"{path} cannot be read, expected an image of {size} bytes to decode: {why}; download it again or exclude it")
