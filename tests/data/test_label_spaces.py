import numpy as np
import pytest

from segjax.data import encodings as en
from segjax.data import label_spaces as ls
from segjax.errors import ConfigError


def test_sizes_and_palettes():
    assert {name: ls.get(name).num_classes for name in ls.LABEL_SPACES} == {
        "cityscapes19": 19,
        "synthia16": 16,
        "synthia13": 13,
        "camvid11": 11,
    }
    space = ls.get("cityscapes19")
    assert space.classes[13] == "car" and space.palette[13] == (0, 0, 142)
    painted = space.colorize(np.array([[13, 255]], np.uint8))
    assert painted.tolist() == [[[0, 0, 142], [0, 0, 0]]]


def test_unknown_names_say_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'cityscapes19'"):
        ls.get("cityscape19")
    with pytest.raises(ConfigError, match="did you mean 'labelId'"):
        en.decode_table("cityscapes19", "labelid")


def test_label_ids_round_trip():
    table = en.decode_table("cityscapes19", "labelId")
    ids = np.arange(19, dtype=np.uint8)
    assert (table[en.encode_labelid(ids)] == ids).all()
    assert table[[0, 6, 9, 10, 18, 29, 30]].tolist() == [255] * 7
    assert (table[[7, 8, 33]]).tolist() == [0, 1, 18]
    assert en.encode_labelid(np.array([255], np.uint8)).tolist() == [0]
    assert not en.valid_ids("cityscapes19", "labelId")[40]


def test_camvid_void_and_default_encoding():
    table = en.decode_table("camvid11")
    assert table[11] == 255 and table[:11].tolist() == list(range(11))
    assert en.valid_ids("camvid11")[11] and not en.valid_ids("camvid11")[12]
    assert not en.valid_ids("cityscapes19")[19]


def test_cityscapes_to_camvid_is_the_reference_protocol():
    table = ls.mapping("cityscapes19", "camvid11")
    got = {name: ls.get("camvid11").classes[k] for name, k in zip(ls.get("cityscapes19").classes, table, strict=True)}
    assert got["wall"] == "building" and got["terrain"] == "sidewalk" and got["traffic light"] == got["traffic sign"] == "sign"
    assert {got[n] for n in ("car", "truck", "bus", "train")} == {"car"}
    assert {got[n] for n in ("rider", "motorcycle", "bicycle")} == {"bicyclist"}
    assert got["vegetation"] == "tree" and got["person"] == "pedestrian" and got["sky"] == "sky"


def test_maps_through_encodings_and_spaces():
    assert ls.mapping("cityscapes19", "synthia16")[[9, 14, 16]].tolist() == [255] * 3
    assert ls.mapping("cityscapes19", "synthia16")[[0, 10, 13, 18]].tolist() == [0, 9, 12, 15]
    assert ls.mapping("synthia16", "synthia13")[[3, 4, 5]].tolist() == [255] * 3
    assert (ls.mapping("synthia16", "synthia16") == np.arange(16)).all()
    assert en.decode_table("cityscapes19", "camvid")[[0, 6, 10, 11]].tolist() == [10, 7, 18, 255]
    # SYNTHIA's raw ids straight to its 16 contiguous classes, as the public lists have them.
    public = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 9, 10: 10, 17: 11, 8: 12, 19: 13, 12: 14, 11: 15}
    table = en.decode_table("synthia16", "synthia")
    assert {raw: int(k) for raw, k in enumerate(table) if k != 255} == public


def test_a_space_of_your_own():
    space = ls.get({"kerb": "#ff0000", "lane": [0, 255, 0]})
    assert (space.classes, space.palette) == (("kerb", "lane"), ((255, 0, 0), (0, 255, 0)))
    assert en.decode_table(space)[:3].tolist() == [0, 1, 255]
    assert ls.mapping(ls.get({"car": "0,0,1", "lane": "#000002"}), "cityscapes19").tolist() == [13, 255]
    for given in ({}, {"lane": "red"}, {"lane": "300,0,0"}, {str(k): "#000000" for k in range(255)}):
        with pytest.raises(ConfigError, match="expected 1 to 254 classes"):
            ls.get(given)
