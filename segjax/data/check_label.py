"""What is wrong with one label file: the format that holds it, and the raw ids in it with the cause that they suggest."""

import pathlib

import numpy as np
from PIL import Image

from segjax.data import encodings, png16
from segjax.data.check_image import unreadable
from segjax.data.encodings import Encoding
from segjax.data.faults import Fault
from segjax.data.label_spaces import LabelSpace
from segjax.errors import DataError
from segjax.typing import IGNORE

BLENDED = 0.12
"""Share of strict in-between pixels at borders above which a label was blended. Drawn labels have up to .06, blended ones .17 to .6
(CamVid, Cityscapes, BDD100K, CARLA; bilinear, bicubic and Lanczos by factors of .25 to 2)."""
MANY_COLOURS = 256


def format_fault(path: pathlib.Path, space: LabelSpace, error: DataError) -> Fault:
    """Why a label file cannot be read as ids. error: what the data set said, for a file that looks as it should."""
    try:
        with Image.open(path) as image:
            image.load()
            kind = image.format or "", image.mode
    except Exception as damage:  # PIL raises whatever a damaged file leads it into
        return unreadable(path, damage)
    if lossy := lossy_fault(path, *kind):
        return lossy
    if png16.is_rgb16(path):
        fix = "read it with --dataset=synthia, or set encoding='synthia'"
        return Fault("label_depth", str(path), "a 16-bit RGB PNG", "SYNTHIA's form, with the class in the first channel", fix)
    if kind[1].startswith(("I", "F")):
        return _deep(path)
    if kind[1] == "1":
        fix = "write class ids as 8-bit grey, one id a class"
        return Fault("label_binary", str(path), "1 bit a pixel", "a binary mask of one class", fix)
    if kind[1] in ("RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "PA"):
        return _coloured(path, kind[1], space)
    return Fault("unreadable", str(path), f"mode {kind[1]}", str(error).removeprefix(f"{path}: "), "use the file that holds ids")


def lossy_fault(path: pathlib.Path, kind: str, mode: str) -> Fault | None:
    """A label in a format that does not keep values. (A lossless WebP holds colours, never one channel of ids.)"""
    if kind not in ("JPEG", "MPO", "WEBP"):
        return None
    cause = "compression with loss changed the ids along every border"
    return Fault(
        "label_jpeg", str(path), f"a {kind} file ({mode})", cause, "make the label again as PNG from the original; it cannot be repaired"
    )


def id_fault(
    path: pathlib.Path, raw: np.ndarray, histogram: np.ndarray, valid: np.ndarray, space: LabelSpace, stored: Encoding
) -> Fault | None:
    """What the raw ids of a readable label suggest; None when they are as they should be.

    raw: uint8 [H,W]. histogram: int [256], its values. valid: bool [256], the values that the encoding knows.
    """
    ids = np.flatnonzero(histogram)
    wrong = ids[~valid[ids]]
    found = f"ids {_list(ids)}"

    def fault(kind: str, cause: str, fix: str, is_wrong: bool = True) -> Fault:
        return Fault(kind, str(path), found, cause, fix, is_wrong, tuple(ids.tolist()))

    if ids.tolist() == [0, IGNORE] and space.num_classes > 1:
        return fault("label_binary", "a binary mask, in which 255 means the object, not ignore", "write class ids instead of 255", False)
    if blended(raw):
        cause = "resized with blending (bilinear, bicubic, antialias), which makes ids of neither class along every border"
        return fault("label_blended", cause, "resize the original label with nearest")
    if not len(wrong):
        return None
    found = f"ids {_list(wrong)} are out of range for {space.name} encoded as {stored.name!r} (all: {_list(ids)})"
    return fault("label_ids", *_cause_of_ids(ids, wrong, valid, stored))


def _cause_of_ids(ids: np.ndarray, wrong: np.ndarray, valid: np.ndarray, stored: Encoding) -> tuple[str, str]:
    """(likely cause, fix) of raw ids of which some, `wrong`, are not valid in the encoding."""
    plain = ids[ids < IGNORE]
    largest, expected = int(plain.max(initial=0)), int(np.flatnonzero(valid[:IGNORE]).max(initial=0))
    step = int(np.gcd.reduce(plain)) if largest else 0
    if wrong.tolist() == [expected + 1] and len(ids) > 1:
        if 0 not in ids:
            return "ids that count from 1", "subtract 1, or give a JSON file of ids as encoding"
        cause = f"one id more: they count from 1 with 0 for the background, or {expected + 1} is void"
        return cause, f'give a JSON file of ids as encoding, with "0" or "{expected + 1}": null'
    if step > 4 and len(ids) > 3 and valid[plain // step].all():
        return f"ids multiplied by {step} to be seen", f"divide them by {step}"
    if stored.files != "labelId" and largest <= 34:
        return "these look like Cityscapes label ids", "set encoding='labelId'"
    if largest <= 65 and not stored.name.startswith("mapillary"):
        return "these look like Mapillary ids", "set encoding='mapillary_v1.2'"
    if largest <= 123 and stored.name == "mapillary_v1.2":
        return "these look like Mapillary v2.0 ids", "set encoding='mapillary_v2.0'"
    if len(wrong) > 3:
        return "a grey copy of a coloured label, or indices of a palette that are no ids", "use the file that holds ids"
    return "stray ids, or another encoding", "fix the file, or give a JSON file of ids as encoding"


def blended(raw: np.ndarray) -> bool:
    """Whether an image program resized the ids as if they were brightness: most borders have a pixel strictly between their two sides."""
    rows = raw[::2]
    left, middle, right = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    changes = np.count_nonzero(left != right)
    if changes < 64 or changes > left.size // 2:  # too little to tell, or noise
        return False
    between = np.count_nonzero(((left < middle) & (middle < right)) | ((left > middle) & (middle > right)))
    return bool(between > BLENDED * changes)


def palette_fault(path: pathlib.Path, palette: list[int], histogram: np.ndarray, table: np.ndarray, space: LabelSpace) -> Fault | None:
    """A palette label whose colours say one class and whose indices another: an image program numbered the colours as it met them.

    palette: flat RGB. table: uint8 [256], raw value -> train id.
    """
    classes = {bytes(colour): index for index, colour in enumerate(space.palette)}
    ids = np.flatnonzero(histogram)
    drawn = {int(k): classes[colour] for k in ids if (colour := bytes(palette[3 * k : 3 * k + 3])) in classes}
    conflicts = [k for k, index in drawn.items() if table[k] != index]
    if not any(table[k] != IGNORE for k in conflicts) and 2 * len(conflicts) <= len(ids):
        return None
    first = conflicts[0]
    meant = space.classes[table[first]] if table[first] != IGNORE else "ignore"
    found = f"index {first} has the colour of {space.classes[drawn[first]]} but stands for {meant}"
    cause = "an image program saved the coloured label and numbered its colours anew"
    return Fault(
        "label_palette",
        str(path),
        found,
        cause,
        "use the file that holds ids, or its RGB copy with a colour encoding",
        True,
        tuple(ids.tolist()),
    )


def _deep(path: pathlib.Path) -> Fault:
    with Image.open(path) as image:
        values = np.asarray(image)
        mode = image.mode
    low, high = values.min(), values.max()
    found = f"mode {mode} with values {low:g}..{high:g}"
    if 24_000 <= high < 34_000 and mode != "F":
        return Fault(
            "label_depth", str(path), found, "Cityscapes instance ids (1000 x label id + number)", "use the *_labelIds.png beside it"
        )
    if high <= 255 and mode != "F":
        return Fault("label_depth", str(path), found, "8-bit ids that a program saved with 16 bits", "save them as 8-bit grey PNG")
    return Fault("label_depth", str(path), found, "a depth, disparity or instance map", "use the file that holds class ids")


def _coloured(path: pathlib.Path, mode: str, space: LabelSpace) -> Fault:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))[::2, ::2].reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)

    def fault(found: str, cause: str, fix: str) -> Fault:
        return Fault("label_colour", str(path), f"{mode} with {found}", cause, fix)

    if (pixels == pixels[:, :1]).all():
        ids = colours[:, 0]
        return fault(f"three equal channels, ids {_list(ids)}", "ids saved as an RGB picture", "save one channel as 8-bit grey PNG")
    known = {"cityscapes_color": encodings.get("cityscapes_color", space), "camvid_color": encodings.get("camvid_color", space)}
    for name, encoding in known.items():
        hit = np.array([tuple(colour) in encoding.colours for colour in colours.tolist()])
        if counts[hit & colours.any(1)].sum() >= 0.9 * counts[colours.any(1)].sum():
            return fault(
                f"{len(colours)} colours", f"drawn in the colours of {name}", f"set encoding={name!r}, or use the file that holds ids"
            )
    if len(colours) > MANY_COLOURS:
        return fault(
            f"{len(colours)} colours and more", "a photograph, an overlay, or a label resized with blending", "use the file that holds ids"
        )
    shown = ", ".join("#" + bytes(colours[k]).hex() for k in np.argsort(-counts, kind="stable")[:4])
    fix = 'use the file that holds ids, or give its colours as encoding: a JSON file {"#rrggbb": "class", ...}'
    return fault(f"{len(colours)} colours, most often {shown}", "a coloured label", fix)


def _list(ids: np.ndarray) -> str:
    text = ", ".join(map(str, ids[:16].tolist()))
    return f"[{text}, ... {ids[-1]}] ({len(ids)})" if len(ids) > 16 else f"[{text}]"
