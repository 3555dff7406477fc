"""What is wrong with one image file: damage of every kind, depth, colour mode, EXIF turns, and the size of its label beside it."""

import pathlib
from typing import NamedTuple

from PIL import Image

from segjax.data import png16
from segjax.data.faults import Fault

_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)
_TURNS = {2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored upside down"}
_TURNS |= {5: "mirrored and turned by 90 degrees", 6: "turned by 90 degrees", 7: "mirrored and turned by 270 degrees"}
_TURNS |= {8: "turned by 270 degrees"}
_MODES = {
    "1": ("black and white (1 bit)", "a mask among the images?"),
    "L": ("grey", "a grey camera or a grey copy; its three channels will be equal"),
    "LA": ("grey with alpha", "alpha is dropped and its three channels will be equal"),
    "P": ("a palette picture", "its 256 colours were chosen by a program; or a label among the images?"),
    "PA": ("a palette picture with alpha", "alpha is dropped"),
    "RGBA": ("RGB with alpha", "alpha is dropped, so what it hid becomes visible"),
    "CMYK": ("CMYK", "made for print; its colours shift when they become RGB"),
    "YCbCr": ("YCbCr", "an unusual file; it is converted to RGB"),
    "LAB": ("LAB", "an unusual file; its colours shift when they become RGB"),
}


class Header(NamedTuple):
    """What an image file says of itself. size: (height, width) as stored. upright: the size after the EXIF turn."""

    mode: str
    format: str
    size: tuple[int, int]
    upright: tuple[int, int]
    orientation: int


def decode(path: pathlib.Path) -> Header:
    """Decodes every pixel, so that a cut file shows, and returns the header. Whatever PIL raises on a damaged file passes through."""
    with Image.open(path) as image:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        size = (image.height, image.width)
        upright = (image.width, image.height) if orientation in _QUARTER_TURNS else size
        return Header(image.mode, image.format or "", size, upright, orientation)


def image_faults(path: pathlib.Path) -> tuple[Header | None, list[Fault]]:
    """The header (None for a file that cannot be read) and what is wrong with the image alone."""
    try:
        header = decode(path)
    except Exception as error:  # PIL raises whatever a damaged file leads it into
        return None, [unreadable(path, error)]
    if header.mode.startswith(("I", "F")):
        fix = "convert it to 8 bits with the tone curve that you want"
        return header, [
            Fault("image_depth", str(path), f"mode {header.mode}, more than 8 bits", "raw sensor values, depth or a 16-bit scan", fix)
        ]
    faults = []
    if header.mode == "RGB" and png16.is_rgb16(path):
        faults.append(
            Fault("image_mode", str(path), "16-bit RGB", "its lower 8 bits are dropped", "convert it to 8 bits if it looks too dark", False)
        )
    elif header.mode != "RGB":
        found, cause = _MODES.get(header.mode, (f"mode {header.mode}", "an unusual file"))
        faults.append(Fault("image_mode", str(path), found, cause, "nothing to do if that is meant, else convert it to RGB", False))
    return header, faults


def size_faults(path: pathlib.Path, header: Header, label: pathlib.Path, size: tuple[int, int]) -> list[Fault]:
    """What is wrong between an image and its label of `size` (height, width): an EXIF turn that the label lacks, another size."""
    turned = _TURNS.get(header.orientation)
    if turned and size == header.size != header.upright:
        found = f"{turned} by EXIF orientation {header.orientation}, so {_words(header.upright)} upright, but {label} is {_words(size)}"
        cause = "the image is turned when it is read, the label was drawn on the pixels as stored"
        return [
            Fault("exif", str(path), found, cause, "turn the label the same way, or remove the EXIF tag (`exiftool -Orientation=1 -n`)")
        ]
    if size != header.upright:
        return [_other_size(path, header, label, size)]
    if turned and header.size == header.upright:
        found = f"{turned} by EXIF orientation {header.orientation}"
        cause = f"{label} has no such tag and sizes cannot tell whether it was turned too"
        return [Fault("exif", str(path), found, cause, "look at it with `data browse`; turn the label or remove the EXIF tag", False)]
    return []


def _other_size(path: pathlib.Path, header: Header, label: pathlib.Path, size: tuple[int, int]) -> Fault:
    (h, w), (height, width) = size, header.upright
    if (w, h) == (height, width):
        cause, fix = "one of the two is turned by a quarter", "turn it back"
    elif abs(w * height - h * width) <= max(w, h, width, height):
        cause = f"the label was made for another resolution ({w / width:.3g}x)"
        fix = "resize the label with nearest, or use the images that it was made for"
    else:
        cause, fix = "it belongs to another image, or one of the two was cropped", "exclude the pair, or find the right file"
    return Fault("size", str(label), f"{_words(size)} but {path} is {_words(header.upright)}", cause, fix)


def unreadable(path: pathlib.Path, error: Exception) -> Fault:
    """Why a file cannot be opened or decoded, from its name and first bytes."""

    def fault(found: str, cause: str, fix: str) -> Fault:
        return Fault("unreadable", str(path), found, cause, fix)

    again = "get it again, or exclude it"
    if not path.exists():
        return fault("does not exist", "a broken link, or a list file of another copy", "correct the list file or the folder")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(512).lstrip().lower()
    except OSError as problem:
        return fault(f"cannot be opened ({problem.strerror})", "its access rights", "give read access, or exclude it")
    if size == 0:
        return fault("0 bytes", "a copy or a download that stopped, or a full disk", again)
    if path.name.startswith("._"):
        return fault("no image", "a shadow file that macOS writes beside the real one", "delete every file that begins with ._")
    if head.startswith((b"<!doctype html", b"<html")):
        return fault("an HTML page", "a download that needed a login or a click", again)
    if head.startswith(b"<?xml") or head.startswith(b"{"):
        return fault("text, not an image", "the error message of a download", again)
    if head.startswith(b"version https://git-lfs"):
        return fault("a Git LFS pointer", "the repository was cloned without its large files", "run `git lfs pull`")
    known = head.startswith((b"\x89png", b"\xff\xd8", b"riff", b"bm", b"ii*\x00", b"mm\x00*"))
    reason = " ".join(str(error).replace(str(path), "the file").split())
    if known:
        return fault(f"damaged or cut off after {size} bytes", f"a copy or a download that stopped ({reason})", again)
    return fault(f"{size} bytes that are no image", f"another kind of file ({reason})", "exclude it or give it its own suffix")


def _words(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
