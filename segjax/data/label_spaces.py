"""Label spaces: class names, palettes, and the integer maps from raw ids to train ids and from one space to another."""

import dataclasses
import difflib

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

_LABEL_IDS = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True))
_SYNTHIA_IDS = dict(zip((3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11), range(19), strict=True))
_MAPILLARY_IDS = {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11}
_MAPILLARY_IDS |= {20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18}
# encoding -> (the space its ids mean, raw id -> train id there, every raw id that may occur)
_ENCODINGS = {
    "cityscapes_trainId": ("cityscapes19", {k: k for k in range(19)}, (*range(19), IGNORE)),
    "labelId": ("cityscapes19", _LABEL_IDS, (*range(35), IGNORE)),
    "synthia": ("cityscapes19", _SYNTHIA_IDS, (*range(23), IGNORE)),
    "mapillary": ("cityscapes19", _MAPILLARY_IDS, (*range(66), IGNORE)),
    "camvid": ("camvid11", {k: k for k in range(11)}, (*range(12), IGNORE)),
}
ENCODINGS = ("trainId", *_ENCODINGS)


def _nearest(kind: str, name: str, known) -> ConfigError:
    close = difflib.get_close_matches(str(name), list(known), 1, 0.0)
    return ConfigError(f"{kind} {name!r} is unknown: did you mean {close[0]!r}? Known: {', '.join(known)}")


def get(name: "str | LabelSpace") -> LabelSpace:
    """Look a label space up by name; a LabelSpace passes through. ConfigError with the nearest name when unknown."""
    if isinstance(name, LabelSpace):
        return name
    if name not in LABEL_SPACES:
        raise _nearest("label space", name, LABEL_SPACES)
    return LABEL_SPACES[name]


def default_encoding(space: "str | LabelSpace") -> str:
    """The raw ids that a space's own data set is usually stored with: CamVid writes void as 11, the others are train ids."""
    return "camvid" if get(space).name == "camvid11" else "trainId"


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


def decode_table(space: "str | LabelSpace", encoding: str | None = None) -> np.ndarray:
    """Lookup table uint8 [256] from a raw label value to a train id of `space`, 255 for everything that is not a class of it.

    encoding: "trainId" (the space's own ids), "labelId" (Cityscapes and GTA5), "cityscapes_trainId", "synthia", "mapillary" (v1.2),
    "camvid"; None is the space's default. The raw ids that are legal at all are `valid_ids`. ConfigError on an unknown encoding.
    """
    space = get(space)
    encoding = encoding or default_encoding(space)
    table = np.full(256, IGNORE, np.uint8)
    if encoding == "trainId":
        table[: space.num_classes] = np.arange(space.num_classes)
        return table
    if encoding not in _ENCODINGS:
        raise _nearest("label encoding", encoding, ENCODINGS)
    native, ids, _ = _ENCODINGS[encoding]
    onward = mapping(native, space)
    for raw, train in ids.items():
        table[raw] = onward[train]
    return table


def valid_ids(space: "str | LabelSpace", encoding: str | None = None) -> np.ndarray:
    """Bool [256]: the raw values that may occur in a label of this encoding, void ones and 255 included."""
    space = get(space)
    encoding = encoding or default_encoding(space)
    valid = np.zeros(256, bool)
    if encoding == "trainId":
        valid[[*range(space.num_classes), IGNORE]] = True
        return valid
    if encoding not in _ENCODINGS:
        raise _nearest("label encoding", encoding, ENCODINGS)
    valid[list(_ENCODINGS[encoding][2])] = True
    return valid


def encode_labelid(label: np.ndarray) -> np.ndarray:
    """Cityscapes train ids (255 = ignore) -> the label ids that its evaluation server wants (ignore -> 0); uint8, same shape."""
    table = np.zeros(256, np.uint8)
    for raw, train in _LABEL_IDS.items():
        table[train] = raw
    return table[label]
