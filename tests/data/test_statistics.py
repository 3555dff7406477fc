"""Class statistics: equal to a recount, kept and read back, and DAFormer's three files both ways."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from segjax.data import daformer_stats, statistics
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes
from segjax.errors import DataError

# What DAFormer's converters write for two 2x3 labels, written by hand: ids as strings, absent classes left out, `file` last.
LIST = [{"0": 4, "13": 2, "file": "gta/labels/00001_labelTrainIds.png"}, {"10": 5, "file": "gta/labels/00002_labelTrainIds.png"}]
DICT = {"gta/labels/00001_labelTrainIds.png": {"0": 4, "13": 2}, "gta/labels/00002_labelTrainIds.png": {"10": 5}}
WITH = {"0": [["gta/labels/00001_labelTrainIds.png", 4]], "13": [["gta/labels/00001_labelTrainIds.png", 2]]}
WITH |= {"10": [["gta/labels/00002_labelTrainIds.png", 5]]}
LABELS = ([[0, 0, 0], [0, 13, 13]], [[10, 10, 10], [10, 10, 255]])


def pairs(folder, labels=LABELS, space="cityscapes19") -> FolderDataset:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index, label in enumerate(labels, 1):
        label = np.asarray(label, np.uint8)
        Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(folder / "images" / f"{index:05d}.png")
        Image.fromarray(label).save(folder / "labels" / f"{index:05d}.png")
    return FolderDataset(str(folder / "images"), str(folder / "labels"), label_space=space)


def test_counts_equal_a_recount():
    dataset = StreetScenes(size=(48, 96), length=5)
    seen = []
    found = statistics.compute(dataset, threads=2, progress=lambda done, total: seen.append((done, total)))
    labels = np.stack([dataset[i]["label"] for i in range(5)])
    for k in range(19):
        np.testing.assert_array_equal(found.counts[:, k], (labels == k).sum((1, 2)))
    np.testing.assert_array_equal(found.ignored, (labels == 255).sum((1, 2)))
    assert seen == [(k, 5) for k in range(1, 6)] and found.names[3] == dataset[3]["name"]
    np.testing.assert_allclose(found.frequencies(), np.bincount(labels[labels != 255], minlength=19) / (labels != 255).sum())
    np.testing.assert_array_equal(found.images_with(30), [((labels == k).sum((1, 2)) > 30).sum() for k in range(19)])


def test_rare_class_probabilities_are_the_softmax_over_present_classes(tmp_path):
    found = statistics.compute(pairs(tmp_path))
    share = np.array([4, 2, 5]) / 11
    expected = np.exp((1 - share) / 0.2) / np.exp((1 - share) / 0.2).sum()
    probabilities = found.rare_class_probabilities(0.2)
    np.testing.assert_allclose(probabilities[[0, 13, 10]], expected, rtol=1e-12)
    assert probabilities.sum() == pytest.approx(1) and np.count_nonzero(probabilities) == 3
    assert np.isfinite(found.rare_class_probabilities(1e-4)).all()


def test_stats_json_comes_back_and_serves_a_subset(tmp_path):
    dataset = pairs(tmp_path)
    found = statistics.compute(dataset)
    path = statistics.save(found, tmp_path / "out", dataset)
    again = statistics.load(path, dataset)
    np.testing.assert_array_equal(again.counts, found.counts)
    np.testing.assert_array_equal(again.ignored, [0, 1])
    content = json.loads(path.read_text())
    assert content["examples"] == 2 and content["images"]["00002.png"][10] == 5 and content["images_with"][0] == 1
    second = FolderDataset(str(tmp_path / "images"), str(tmp_path / "labels"), exclude="00001")
    assert statistics.load(tmp_path / "out", second).counts.tolist() == found.counts[1:].tolist()


def test_the_memory_is_for_this_data_set_only(tmp_path):
    dataset = pairs(tmp_path)
    assert statistics.load_current(tmp_path, dataset) is None
    path = statistics.save(statistics.compute(dataset), tmp_path, dataset)
    known = statistics.load_current(tmp_path, dataset)
    assert known and known.names == ("00001.png", "00002.png")
    smaller = FolderDataset(str(tmp_path / "images"), str(tmp_path / "labels"), resize=(1, 1))
    assert statistics.load_current(tmp_path, smaller) is None
    label = tmp_path / "labels" / "00001.png"
    later = path.stat().st_mtime + 5
    os.utime(label, (later, later))
    assert statistics.load_current(tmp_path, dataset) is None
    path.write_text("{")
    assert statistics.load_current(tmp_path, dataset) is None


def test_daformers_files_are_written_as_its_converters_do(tmp_path):
    found = statistics.compute(pairs(tmp_path))
    files = [daformer_stats.label_file(f"gta/labels/{name}") for name in found.names]
    paths = daformer_stats.write(tmp_path, found.label_space, files, found.counts)
    for path, expected in zip(paths, (LIST, DICT, WITH), strict=True):
        assert path.read_text() == json.dumps(expected, indent=2), path.name
    assert [path.name for path in paths] == list(daformer_stats.FILES)


@pytest.mark.parametrize(("name", "content"), zip(daformer_stats.FILES, (LIST, DICT, WITH), strict=True))
def test_daformers_files_are_read(tmp_path, name, content):
    dataset = pairs(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    expected = statistics.compute(dataset)
    for path in (tmp_path / name, tmp_path):
        found = statistics.load(path, dataset)
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert found.names == expected.names and found.ignored is None
    statistics.save(found, tmp_path / "own", dataset)
    again = statistics.load(tmp_path / "own", dataset)
    assert again.ignored is None and again.counts.tolist() == expected.counts.tolist()


def test_layout_tags_do_not_count():
    for file in ("x/aachen_1_gtFine_labelTrainIds.png", "aachen_1_leftImg8bit.png", "aachen_1_gtFine_labelIds.png", "y\\aachen_1.png"):
        assert daformer_stats.key(file) == "aachen_1"
    assert daformer_stats.key("GT/LABELS/0000000_labelTrainIds.png") == "0000000"
    assert daformer_stats.label_file("a/b_gtFine_labelIds.png") == "a/b_gtFine_labelTrainIds.png"
    assert daformer_stats.label_file("a/b_gtFine_labelTrainIds.png") == "a/b_gtFine_labelTrainIds.png"
    assert daformer_stats.label_file("labels/00001.png") == "labels/00001_labelTrainIds.png"


def test_sixteen_classes_keep_cityscapes_ids(tmp_path):
    dataset = pairs(tmp_path, space="synthia16", labels=([[0, 9, 10]], [[15, 15, 255]]))  # sky, person, bicycle
    found = statistics.compute(dataset)
    daformer_stats.write(tmp_path, dataset.label_space, found.names, found.counts)
    assert json.loads((tmp_path / daformer_stats.FILES[1]).read_text()) == {"00001.png": {"0": 1, "10": 1, "11": 1}, "00002.png": {"18": 2}}
    np.testing.assert_array_equal(statistics.load(tmp_path, dataset).counts, found.counts)


def test_errors_name_the_first_file(tmp_path):
    dataset = pairs(tmp_path)
    file = tmp_path / daformer_stats.FILES[1]
    file.write_text(json.dumps({"b/00002_labelTrainIds.png": {"0": 1}}))
    with pytest.raises(DataError, match=r"lacks 1 of 2 examples, first \['00001.png'\]"):
        statistics.load(file, dataset)
    file.write_text(json.dumps({**DICT, "b/00002.png": {"0": 1}}))
    with pytest.raises(DataError, match="'00002' twice"):
        statistics.load(file, dataset)
    file.write_text(json.dumps({"00001.png": {"19": 1}}))
    with pytest.raises(DataError, match=r"id 19, expected train ids 0\.\.18"):
        statistics.load(file, dataset)
    file.write_text("[1, 2]")
    with pytest.raises(DataError, match="as DAFormer writes them"):
        statistics.load(file, dataset)
    with pytest.raises(DataError, match="does not exist"):
        statistics.load(tmp_path / "no.json", dataset)
    statistics.save(statistics.compute(dataset), tmp_path, dataset)
    camvid = FolderDataset(str(tmp_path / "images"), str(tmp_path / "labels"), label_space="camvid11")
    with pytest.raises(DataError, match="expected camvid11"):
        statistics.load(tmp_path, camvid)
    with pytest.raises(DataError, match="unlabelled"):
        statistics.compute(dataset.unlabelled())
