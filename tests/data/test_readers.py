"""Each published layout, made small and in its own form: pairs, encodings, splits, what is broken, and the wrong folder."""

import pickle

import numpy as np
import pytest
from small_layouts import TABLE, acdc, camvid, cityscapes, dark_zurich, generated, gta5, mapillary, synthia

from segjax.data.readers.acdc import ACDC
from segjax.data.readers.camvid import CamVid
from segjax.data.readers.cityscapes import Cityscapes
from segjax.data.readers.dark_zurich import DarkZurich
from segjax.data.readers.generated import Generated
from segjax.data.readers.gta5 import GTA5
from segjax.data.readers.mapillary import Mapillary
from segjax.data.readers.synthia import Synthia
from segjax.errors import ConfigError, DataError


@pytest.mark.parametrize("layout, reader, keywords, names, halves", TABLE, ids=lambda value: getattr(value, "__name__", None))
def test_reads_its_layout(tmp_path, layout, reader, keywords, names, halves):
    layout(tmp_path)
    dataset = reader(str(tmp_path), **keywords)
    assert [dataset.name(i) for i in range(len(dataset))] == names
    assert dataset.labelled == (halves is not None) and repr(dataset) == repr(reader(str(tmp_path), **keywords))
    for again in (dataset, pickle.loads(pickle.dumps(dataset))):
        for index in range(len(dataset)):
            example = again[index]
            assert example["image"].shape == (*example["image"].shape[:2], 3) and example["image"].dtype == np.uint8
            if halves is None:
                assert "label" not in example
                continue
            middle = example["label"].shape[1] // 2
            assert example["label"].shape == example["image"].shape[:2] and example["label"].dtype == np.uint8
            assert (example["label"][:, :middle] == halves[0]).all() and (example["label"][:, middle:] == halves[1]).all()


@pytest.mark.parametrize("layout, reader", [(row[0], row[1]) for row in TABLE if not row[2] and row[4]], ids=lambda value: value.__name__)
def test_unlabelled_needs_no_labels_and_unpaired_are_named(tmp_path, layout, reader):
    layout(tmp_path)
    folder, stem = reader(str(tmp_path)).pairs[0][1], reader(str(tmp_path)).pairs[0][0].stem
    folder.unlink()
    with pytest.raises(DataError, match="have no label|holds no image file"):
        reader(str(tmp_path))
    found = reader(str(tmp_path), labelled=False)
    assert not found.labelled and stem in found.name(0)
    for path in (tmp_path / folder.relative_to(tmp_path).parts[0]).rglob("*"):
        if path.is_file() and "mage" not in path.as_posix().removeprefix(str(tmp_path)) and "rgb" not in path.as_posix().lower():
            path.write_bytes(b"no label should be opened")
    assert "label" not in reader(str(tmp_path), labelled=False)[0]


@pytest.mark.parametrize("layout, reader", [(row[0], row[1]) for row in TABLE if not row[2]], ids=lambda value: value.__name__)
def test_the_wrong_folder_says_what_was_expected_and_the_way_out(tmp_path, layout, reader):
    layout(tmp_path / "disk" / "set")
    if reader is not Generated:
        with pytest.raises(DataError, match=r"expected .* below root=.*found there: set.*set root=.*disk/set") as caught:
            reader(str(tmp_path / "disk"))
        assert "\n" not in str(caught.value)
    inside = next(path for path in (tmp_path / "disk/set").iterdir() if path.is_dir())
    with pytest.raises(DataError, match=f"set root={tmp_path}/disk/set" if reader is not Generated else "cannot be read"):
        reader(str(inside))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found there: none: download" if reader is not Generated else "manifest.jsonl cannot be read"):
        reader(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="is not a folder: check the path"):
        reader(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    "layout, reader, keywords, match",
    [
        (gta5, GTA5, {"split": "val"}, "GTA5 split 'val' is unknown: did you mean 'all'"),
        (gta5, GTA5, {"split": "train", "names": ["00001"]}, "both given"),
        (cityscapes, Cityscapes, {"split": "training"}, "did you mean 'train'"),
        (cityscapes, Cityscapes, {"labels": "trainIds"}, "did you mean 'labelTrainIds'"),
        (mapillary, Mapillary, {"version": "2"}, "did you mean '2.0'"),
        (acdc, ACDC, {"condition": "nigth"}, "did you mean 'night'"),
        (dark_zurich, DarkZurich, {"split": "val", "time": "twilight"}, "did you mean 'night'"),
        (synthia, Synthia, {"split": "val"}, "did you mean 'train'"),
        (generated, Generated, {"prefix": 9}, "expected 1 to 4"),
        (camvid, CamVid, {"encoding": "camvids"}, "did you mean 'camvid'"),
    ],
)
def test_choices_that_do_not_exist(tmp_path, layout, reader, keywords, match):
    layout(tmp_path)
    with pytest.raises(ConfigError, match=match):
        reader(str(tmp_path), **keywords)


def test_a_manifest_keeps_its_words_and_names_its_faults(tmp_path):
    generated(tmp_path)
    dataset = Generated(str(tmp_path), exclude="y.png")
    assert [entry["seed"] for entry in dataset.manifest] == [0, 2, 3] and dataset.manifest[0]["prompt"] == "a street at dusk"
    file = tmp_path / "manifest.jsonl"
    whole = file.read_text()
    for text, match in ((whole[:-5], "manifest.jsonl:4 is not JSON"), ('{"file": "a"}\n', 'has no "image"'), ("\n", "names no image")):
        file.write_text(text)
        with pytest.raises(DataError, match=match):
            Generated(str(tmp_path))
    file.write_text('{"image": "gone.png"}\n')
    with pytest.raises(DataError, match="gone.png"):
        Generated(str(tmp_path))


def test_published_counts_are_the_facts():
    from segjax.data.readers import acdc, bdd100k, camvid, cityscapes, dark_zurich, gta5, mapillary

    assert {name: len(numbers) for name, numbers in gta5.SPLITS.items()} == {"all": 24966, "train": 20000, "test": 2466}
    assert [cityscapes.COUNTS[split] for split in ("train", "val", "test")] == [2975, 500, 1525]
    assert (bdd100k.COUNTS["train"], bdd100k.COUNTS["val"], mapillary.COUNTS["val"]) == (7000, 1000, 2000)
    assert sum(acdc.VAL_COUNTS.values()) == 406 and sum(dark_zurich.COUNTS[key, "night"] for key in ("val", "test")) == 201
    assert list(camvid.COUNTS.values()) == [367, 101, 233] and Synthia.published == 9400


def test_real_data(real_data):
    dataset = CamVid(str(real_data / "camvid"), split="val")
    assert len(dataset) == dataset.published == 101 and set(np.unique(dataset.label(0))) <= {*range(11), 255}
    city = Cityscapes(str(real_data / "samples/cityscapes"))
    assert city[0]["label"].shape == (1024, 2048) and (city[0]["label"] == city.label(0)).all()
