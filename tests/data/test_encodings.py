import json

import numpy as np
import pytest
from PIL import Image

from segjax.data import encodings, label_spaces
from segjax.data.folders import FolderDataset
from segjax.errors import ConfigError, DataError

CITYSCAPES = label_spaces.get("cityscapes19")


def named(encoding, space="cityscapes19"):
    """raw value -> class name of what an encoding keeps."""
    classes = label_spaces.get(space).classes
    return {raw: classes[train] for raw, train in enumerate(encodings.decode_table(space, encoding)) if train != 255}


def test_every_encoding_gives_its_classes():
    for name in encodings.ENCODINGS:
        space = encodings.get(name, CITYSCAPES).space or "cityscapes19"
        assert set(named(name, space).values()) == set(label_spaces.get(space).classes), name
        assert set(named(name, space)) <= set(np.flatnonzero(encodings.valid_ids(space, name))), name


def test_mapillary_tables_name_what_the_definitions_name(real_data):
    """The public label lists, by name: every class of the map has a name that fits, v2.0 says what v1.2 says of the same name."""
    folder = real_data / "samples/label_definitions"
    versions = {"1.2": "1p2", "2.0": "2p0"}
    read = {version: json.loads((folder / f"mapillary-config-v{part}.json").read_text()) for version, part in versions.items()}
    lists = {version: [label["name"] for label in found["labels"]] for version, found in read.items()}
    for version, names in lists.items():
        assert np.flatnonzero(encodings.valid_ids("cityscapes19", f"mapillary_v{version}")).tolist() == [*range(len(names)), 255]
    old, new = ({names[raw]: train for raw, train in named(f"mapillary_v{version}").items()} for version, names in lists.items())
    shared = set(lists["1.2"]) & set(lists["2.0"])
    assert len(shared) > 50
    assert {name: old.get(name) for name in shared} == {name: new.get(name) for name in shared}
    added = {name: train for name, train in new.items() if name not in shared}
    lights = {name for name in lists["2.0"] if "--traffic-light--" in name}
    assert {name for name, train in added.items() if train == "traffic light"} == lights
    assert {train for name, train in added.items() if name.startswith("marking")} == {"road"}
    assert not any("crosswalk" in name or name.endswith("back") for name in new)
    assert {added["human--person--individual"], added["human--person--person-group"]} == {"person"}


def test_cityscapes_ids_and_colours_are_those_of_the_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    ids = encodings.decode_table("cityscapes19", "labelId")
    colours = encodings.get("cityscapes_color", CITYSCAPES)
    drawn = dict(zip(colours.colours, colours.ids.values(), strict=True))
    for label in labels:
        if label.id >= 0:
            assert ids[label.id] == (label.trainId if label.trainId < 19 else 255), label.name
        if label.trainId in range(19):
            assert drawn[label.color] == label.trainId
        assert label.color in drawn


@pytest.fixture
def folder(tmp_path):
    for side in ("images", "labels"):
        (tmp_path / side).mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "images/a.png")

    def make(label: np.ndarray, encoding, space="cityscapes19"):
        Image.fromarray(label).save(tmp_path / "labels/a.png")
        return FolderDataset(str(tmp_path / "images"), str(tmp_path / "labels"), label_space=space, encoding=encoding)

    return make


def test_a_users_ids(folder, tmp_path):
    label = np.array([[1, 2, 3, 3], [1, 1, 1, 255], [9, 9, 9, 9]], np.uint8)
    given = {"1": "road", "2": 13, "3": None, "9": "ignore"}
    want = [[0, 13, 255, 255], [0, 0, 0, 255], [255] * 4]
    assert folder(label, given).label(0).tolist() == want
    (tmp_path / "ids.json").write_text(json.dumps(given))
    dataset = folder(label, str(tmp_path / "ids.json"))
    assert dataset[0]["label"].tolist() == want and "ids.json" in repr(dataset)
    with pytest.raises(DataError, match=r"label ids \[3\] are out of range .* expected 1..2 or 9 or 255"):
        folder(label, {"1": "road", "2": "car", "9": "sky"}).label(0)
    # A class of another label space goes where the spaces' own map sends it.
    assert set(folder(label, {"1": "truck", "2": "wall", "3": "sky", "9": None}, "camvid11").label(0).ravel()) == {8, 1, 0, 255}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_users_colours(folder, tmp_path, mode):
    picture = np.zeros((3, 4, 3), np.uint8)
    picture[0], picture[1] = (128, 64, 128), (1, 2, 3)
    given = {"#804080": "road", "[1, 2, 3]": "car", "0,0,0": None}
    dataset = folder(picture, given)
    image = Image.fromarray(picture)
    image = image.quantize(8) if mode == "P" else image.convert(mode)
    if mode == "RGBA":
        image.putalpha(7)
    image.save(tmp_path / "labels/a.png")
    assert dataset.label(0).tolist() == [[0] * 4, [13] * 4, [255] * 4]
    picture[2, :3] = (9, 9, 9)
    with pytest.raises(DataError, match=r"1 colours are not in .* #090909 \(3 pixels\): add them"):
        folder(picture, given).label(0)


@pytest.mark.parametrize(
    "given, match",
    [
        ({}, "is empty"),
        ({"1": "road", "#000000": None}, "both ids and colours"),
        ({"300": "road"}, "neither a raw id 0..255 nor a colour"),
        ({"#80408": "road"}, "neither"),
        ({"1,2": "road"}, "neither"),
        ({"1": "rode"}, "expected a class of cityscapes19"),
        ({"1": 19}, "train id 0..18"),
        ("labelid", "did you mean 'labelId'"),
        ("nowhere.json", "cannot be read as JSON"),
    ],
)
def test_maps_that_mean_nothing(given, match):
    with pytest.raises(ConfigError, match=match) as caught:
        encodings.get(given, "cityscapes19")
    assert "\n" not in str(caught.value)


def test_a_photograph_is_no_colour_label(folder):
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    with pytest.raises(DataError, match="colours are not in cityscapes_color"):
        folder(noise, "cityscapes_color").label(0)
    with pytest.raises(DataError, match="has mode L, expected a picture in the colours"):
        folder(noise[..., 0], "cityscapes_color").label(0)


def test_the_real_cityscapes_colours(real_data):
    """labelIds -> train ids -> colour is gtFine_color on every pixel of a scored class; back again only what shares a colour differs."""
    sample = real_data / "samples/cityscapes"
    folders = str(sample / "leftImg8bit/train"), str(sample / "gtFine/train")
    label = FolderDataset(*folders, encoding="labelId").label(0)
    picture = np.array(Image.open(next((sample / "gtFine").rglob("*_color.png"))).convert("RGB"))
    scored = label != 255
    assert scored.mean() > 0.8 and (CITYSCAPES.colorize(label)[scored] == picture[scored]).all()
    drawn = FolderDataset(*folders, encoding="cityscapes_color").label(0)
    assert (drawn[scored] == label[scored]).all() and (drawn[~scored] == 255).all()


def test_real_bdd100k_masks(real_data):
    table = encodings.valid_ids("cityscapes19", "bdd100k")
    for path in sorted((real_data / "samples/bdd100k").glob("*.png")):
        assert table[np.unique(np.array(Image.open(path)))].all(), path
