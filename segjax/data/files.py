"""Reading one image or one label file, with an error that names it when it is not what it should be."""

import functools
import pathlib

import numpy as np
from PIL import Image, ImageOps

from segjax.data import png16
from segjax.errors import DataError

_UNKNOWN = 255


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


def read_image_size(path: "str | pathlib.Path") -> tuple[int, int]:
    """(height, width) of what `read_image` gives, from the file's header alone. DataError when it is no image."""
    with _open(path) as image:
        # EXIF orientations 5 to 8 are quarter turns.
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def plain_rgb_bytes(path: "str | pathlib.Path") -> bytes | None:
    """The bytes of a JPEG or PNG file that needs no conversion to be read: 8-bit RGB, upright; None for any other."""
    content = pathlib.Path(path).read_bytes()
    with _open(path) as image:
        plain = image.format in ("JPEG", "PNG") and image.mode == "RGB" and image.getexif().get(0x0112, 1) == 1
    return content if plain and not png16.is_rgb16(path) else None


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


def read_wide_label(path: "str | pathlib.Path") -> np.ndarray:
    """Read ids from the first channel of a 16-bit RGB PNG (SYNTHIA's GT/LABELS) or from an 8-bit copy, uint8 [H,W].

    DataError when the file is damaged, neither of the two, or holds an id above 255.
    """
    with _open(path) as image:
        mode = image.mode
    if mode in ("L", "P"):
        return read_label(path)
    if not png16.is_rgb16(path):
        raise Unreadable(
            f"{path} is an 8-bit picture ({mode}), expected a 16-bit RGB PNG with the class in its first channel, or one 8-bit channel of "
            "ids: use SYNTHIA's GT/LABELS, not GT/COLOR and no copy that an image program saved"
        )
    try:
        ids = png16.read_first_channel(path)
    except ValueError as error:
        raise _damaged(path, error) from error
    if ids.max() > 255:
        raise BadIds(f"{path}: its first channel holds {ids.max()}, expected class ids below 256: is this the depth or the instance file?")
    return ids.astype(np.uint8)


def read_colour_label(path: "str | pathlib.Path", colours: tuple, name: str) -> np.ndarray:
    """Read a label drawn in colours as indices into `colours`, uint8 [H,W]; alpha is dropped. name: of the colours, for errors.

    Colours match exactly or not at all. DataError when the file is damaged or has no colours; BadIds names the colours that are unknown.
    """
    with _open(path) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise Unreadable(f"{path} has mode {image.mode}, expected a picture in the colours of {name}: ids need an encoding of ids")
        try:
            pixels = np.array(image.convert("RGBA"))
        except Exception as error:  # PIL raises whatever a damaged file leads it into
            raise _damaged(path, error) from error
    codes = pixels.view("<u4")[..., 0] & 0xFFFFFF  # blue, green, red from the highest byte down
    label = _colour_table(tuple(colours))[codes]
    strange = label == _UNKNOWN
    if strange.any():
        found, counts = np.unique(codes[strange], return_counts=True)
        written = [int(code).to_bytes(3, "little").hex() for code in found]
        first = ", ".join(f"#{written[k]} ({counts[k]} pixels)" for k in np.argsort(-counts, kind="stable")[:5])
        cause = "a photograph, a JPEG, or resized with blending?" if len(found) > 40 else "add them to the encoding (null: ignore)"
        raise BadIds(f"{path}: {len(found)} colours are not in {name}, most often {first}: {cause}")
    return label


@functools.lru_cache(4)
def _colour_table(colours: tuple) -> np.ndarray:
    """Index of every possible colour, uint8 [2^24] by red + 256 green + 65536 blue."""
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    for index, (red, green, blue) in enumerate(colours):
        table[red | green << 8 | blue << 16] = index
    return table


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
