"""Encodings: what the values of a label file mean, for the public data sets and for a user's own ids or colours."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from segjax.data import encoding_tables as tables
from segjax.data.label_spaces import LABEL_SPACES, LabelSpace, colour, mapping, nearest
from segjax.data.label_spaces import get as get_space
from segjax.errors import ConfigError
from segjax.typing import IGNORE

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How label files spell train ids of `space` (None: of the data set's own label space).

    ids: raw value -> train id, 255 = ignore; every raw value that may occur is a key. files: which files hold it where several kinds lie
    side by side ("trainId", "labelId" or "color"). colours: raw value k is drawn in RGB `colours[k]`; empty where files hold raw values.
    wide: the files may be 16-bit RGB with the raw value in their first channel.
    """

    name: str
    space: str | None
    ids: Mapping[int, int]
    files: str = "trainId"
    colours: tuple[Colour, ...] = ()
    wide: bool = False


def _ids(name: str, space: str | None, classes: Mapping[int, int], legal: range, **keywords) -> Encoding:
    return Encoding(name, space, {**dict.fromkeys((*legal, IGNORE), IGNORE), **classes}, **keywords)


def _colours(name: str, space: str | None, classes: Mapping[Colour, int]) -> Encoding:
    return Encoding(name, space, dict(enumerate(classes.values())), "color", tuple(classes))


_KNOWN = {
    encoding.name: encoding
    for encoding in (
        *(_ids(name, "cityscapes19", {k: k for k in range(19)}, range(19)) for name in ("cityscapes_trainId", "bdd100k", "acdc")),
        *(_ids(name, "cityscapes19", tables.LABEL_IDS, range(35), files="labelId") for name in ("labelId", "gta5")),
        _ids("synthia", "cityscapes19", tables.SYNTHIA_IDS, range(23), wide=True),
        _ids("synthia16", "synthia16", {k: k for k in range(16)}, range(16)),
        _ids("mapillary_v1.2", "cityscapes19", tables.MAPILLARY_V12, range(66)),
        _ids("mapillary_v2.0", "cityscapes19", tables.MAPILLARY_V20, range(124)),
        _ids("camvid", "camvid11", {k: k for k in range(11)}, range(12)),
        _colours("cityscapes_color", "cityscapes19", tables.CITYSCAPES_COLORS),
        _colours("camvid_color", "camvid11", tables.CAMVID_COLORS),
    )
}
ENCODINGS = ("trainId", *_KNOWN)


def default_encoding(space: "str | LabelSpace") -> str:
    """The raw ids that a space's own data set is usually stored with: CamVid writes void as 11, the others are train ids."""
    return "camvid" if get_space(space).name == "camvid11" else "trainId"


def get(encoding: "str | Mapping | Encoding | None", space: "str | LabelSpace") -> Encoding:
    """Look up what a data set of `space` may give as its `encoding`.

    A name of `ENCODINGS` ("trainId": the space's own ids; None: the space's default), a user's map, or the path of a JSON file with such a
    map: {"7": "road", "0": null} of raw ids, or {"#804080": "road", "[0, 0, 0]": null} of colours. Values: a class name, a train id of
    `space`, or null, "ignore" and 255. A name of another space is carried over (`label_spaces.mapping`). Raw id 255 is ignore unless named.
    ConfigError: an unknown name (with the nearest), a file that cannot be read, a key or value that means nothing.
    """
    space = get_space(space)
    if isinstance(encoding, Encoding):
        return encoding
    if encoding is None or encoding == "":
        encoding = default_encoding(space)
    if isinstance(encoding, Mapping):
        return _user("encoding", encoding, space)
    if encoding.endswith(".json"):
        return _user(pathlib.Path(encoding).name, read_json(encoding), space)
    if encoding == "trainId":
        return _ids("trainId", None, {k: k for k in range(space.num_classes)}, range(0))
    if encoding not in _KNOWN:
        raise nearest("label encoding", encoding, ENCODINGS)
    return _KNOWN[encoding]


def decode_table(space: "str | LabelSpace", encoding=None) -> np.ndarray:
    """Lookup table uint8 [256] from a raw label value to a train id of `space`, 255 for everything that is not a class of it.

    encoding: whatever `get` takes. The raw values that are legal at all are `valid_ids`.
    """
    space = get_space(space)
    found = get(encoding, space)
    onward = np.arange(space.num_classes) if found.space is None else mapping(found.space, space)
    table = np.full(256, IGNORE, np.uint8)
    for raw, train in found.ids.items():
        table[raw] = IGNORE if train == IGNORE else onward[train]
    return table


def valid_ids(space: "str | LabelSpace", encoding=None) -> np.ndarray:
    """Bool [256]: the raw values that may occur in a label of this encoding, void ones included."""
    valid = np.zeros(256, bool)
    valid[list(get(encoding, space).ids)] = True
    return valid


def encode_labelid(label: np.ndarray) -> np.ndarray:
    """Cityscapes train ids (255 = ignore) -> the label ids that its evaluation server wants (ignore -> 0); uint8, same shape."""
    table = np.zeros(256, np.uint8)
    for raw, train in tables.LABEL_IDS.items():
        table[train] = raw
    return table[label]


def read_json(path: "str | pathlib.Path") -> dict:
    """A JSON object from a file. ConfigError when it is missing or is none."""
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}): check the path and the file") from error
    if not isinstance(found, dict):
        raise ConfigError(f'{path} holds a {type(found).__name__}, expected a JSON object like {{"7": "road"}}')
    return found


def _user(where: str, given: Mapping, space: LabelSpace) -> Encoding:
    ids: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    for key, value in given.items():
        raw, train = _key(where, key), _train_id(where, key, value, space)
        if isinstance(raw, int):
            ids[raw] = train
        else:
            colours[raw] = train
    if bool(ids) == bool(colours):
        what = "holds both ids and colours" if ids else "is empty"
        raise ConfigError(f'{where} {what}, expected {{"raw id": class}} or {{"#rrggbb": class}}')
    if len(colours) > 255:
        raise ConfigError(f"{where} names {len(colours)} colours, expected at most 255")
    return _ids(where, None, ids, range(0)) if ids else _colours(where, None, colours)


def _key(where: str, key) -> "int | Colour":
    found = colour(key)
    if found is not None:
        return found
    text = str(key).strip()
    if not text.isdecimal() or int(text) > 255:
        raise ConfigError(f"{where}: {key!r} is neither a raw id 0..255 nor a colour like '#804080' or '[128, 64, 128]'")
    return int(text)


def _train_id(where: str, key, value, space: LabelSpace) -> int:
    if value is None or value == IGNORE or value == "ignore":
        return IGNORE
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < space.num_classes:
        return value
    if value in space.classes:
        return space.classes.index(value)
    for other in LABEL_SPACES.values():
        if value in other.classes:
            return int(mapping(other, space)[other.classes.index(value)])
    expected = f"a class of {space.name} ({', '.join(space.classes)}), a train id 0..{space.num_classes - 1}, or null"
    raise ConfigError(f"{where}: {key!r} is {value!r}, expected {expected}")
