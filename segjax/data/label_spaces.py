"""Label spaces: class names, palettes, and the maps from one space to another."""

import dataclasses
import difflib
import re
from collections.abc import Mapping

import numpy as np

from segjax.errors import ConfigError
from segjax.typing import IGNORE


@dataclasses.dataclass(frozen=True)
class LabelSpace:
    """The classes that a network predicts. Train id k is `classes[k]`; `palette[k]` is its RGB colour, 0..255."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, ignore not counted."""
        return len(self.classes)

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Paint train ids [..., H, W] as RGB uint8 [..., H, W, 3]; every id outside the space, 255 too, is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.palette
        return table[label]


_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def _space(name: str, colours: dict, without: tuple[str, ...] = ()) -> LabelSpace:
    kept = {key: colour for key, colour in colours.items() if key not in without}
    return LabelSpace(name, tuple(kept), tuple(kept.values()))


_NOT_IN_SYNTHIA = ("terrain", "truck", "train")
LABEL_SPACES = {
    space.name: space
    for space in (
        _space("cityscapes19", _CITYSCAPES),
        _space("synthia16", _CITYSCAPES, _NOT_IN_SYNTHIA),
        _space("synthia13", _CITYSCAPES, _NOT_IN_SYNTHIA + ("wall", "fence", "pole")),
        _space("camvid11", _CAMVID),
    )
}

# Class names that differ between the two families. Towards CamVid several classes merge (the protocol of the reference ENet
# figures); back, a merged class goes to its most frequent member.
_TO_CAMVID = {
    "wall": "building",
    "terrain": "sidewalk",
    "vegetation": "tree",
    "traffic light": "sign",
    "traffic sign": "sign",
    "truck": "car",
    "bus": "car",
    "train": "car",
    "person": "pedestrian",
    "rider": "bicyclist",
    "motorcycle": "bicyclist",
    "bicycle": "bicyclist",
}
_FROM_CAMVID = {"tree": "vegetation", "sign": "traffic sign", "pedestrian": "person", "bicyclist": "bicycle"}


def nearest(kind: str, name: str, known) -> ConfigError:
    """The error for a name that is unknown, with the nearest one that is known."""
    close = difflib.get_close_matches(str(name), list(known), 1, 0.0)
    return ConfigError(f"{kind} {name!r} is unknown: did you mean {close[0]!r}? Known: {', '.join(known)}")


def get(name: "str | LabelSpace | Mapping") -> LabelSpace:
    """Look a label space up by name; a LabelSpace passes through; {"lane": "#ff0000", "kerb": "[0, 0, 255]"} is a space of your own.

    ConfigError with the nearest name when unknown, or naming the class whose colour is none.
    """
    if isinstance(name, LabelSpace):
        return name
    if isinstance(name, Mapping):
        palette = tuple(colour(value) for value in name.values())
        wrong = [key for key, value in zip(name, palette, strict=True) if value is None]
        if wrong or not 0 < len(name) < IGNORE:
            raise ConfigError(
                f"label space of {len(name)} classes, {len(wrong)} without a colour {wrong[:5]}: expected 1 to {IGNORE - 1} classes, "
                "each with a colour like '#804080' or '[128, 64, 128]'"
            )
        return LabelSpace("own", tuple(map(str, name)), tuple(value for value in palette if value is not None))
    if name not in LABEL_SPACES:
        raise nearest("label space", name, LABEL_SPACES)
    return LABEL_SPACES[name]


def colour(value) -> tuple[int, int, int] | None:
    """(128, 64, 128) from "#804080", "[128, 64, 128]", "128,64,128" or the three numbers themselves; None for anything else."""
    text = str(value).strip()
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    if not re.fullmatch(r"[\[(]?\s*\d+\s*,\s*\d+\s*,\s*\d+\s*[\])]?", text):
        return None
    red, green, blue = map(int, re.findall(r"\d+", text))
    return (red, green, blue) if max(red, green, blue) < 256 else None


def mapping(from_space: "str | LabelSpace", to_space: "str | LabelSpace") -> np.ndarray:
    """Map train ids of one space to another: uint8 [K_from] of `to_space` ids, 255 where a class has no counterpart.

    Cityscapes -> CamVid merges by the protocol of the reference figures (wall -> building, terrain -> sidewalk, light and sign -> sign,
    truck, bus and train -> car, rider, motorcycle and bicycle -> bicyclist). Fancy-index with it: `mapping(a, b)[prediction]`.
    """
    from_space, to_space = get(from_space), get(to_space)
    table = np.full(from_space.num_classes, IGNORE, np.uint8)
    alias = _TO_CAMVID if set(to_space.classes) >= set(_CAMVID) else _FROM_CAMVID
    for index, name in enumerate(from_space.classes):
        counterpart = name if name in to_space.classes else alias.get(name)
        if counterpart in to_space.classes:
            table[index] = to_space.classes.index(counterpart)
    return table
