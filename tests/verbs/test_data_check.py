"""`segjax data check` on good folders and on everything that goes wrong in practice."""

import argparse
import json
import pathlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from segjax.errors import ConfigError
from segjax.verbs import data, data_check


def verb(capsys, **flags) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    config = flags.pop("config", None)
    args = parser.parse_args(["check", *(f"--{k.replace('_', '-')}={v}" for k, v in flags.items())])
    if config is not None:
        args.config = config
    code = data.run(args)
    return code, capsys.readouterr().out


def pair(folder: pathlib.Path, name: str, label: np.ndarray | None, size=(12, 16)) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / "images" / f"{name}.png")
    if label is not None:
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{name}.png")


def good(folder: pathlib.Path, count: int = 3) -> dict[str, str]:
    """Folders whose labels hold every class of camvid11 and void; returns the flags."""
    for i in range(count):
        pair(folder, f"good{i}", np.arange(192).reshape(12, 16) % 12)
    return {"images": f"{folder}/images", "labels": f"{folder}/labels", "label_space": "camvid11"}


def test_good_folders(tmp_path, capsys):
    code, text = verb(capsys, **good(tmp_path))
    assert re.search(r"\n  read   3 examples in \d+\.\d s: \d+ a second, \d+\.\d ms of processor time each\n", text)
    assert code == 0 and "good   3 examples" in text and "every data set can be used" in text
    assert (
        "WRONG" not in text and "sky            9.09 %  3 images".split() == next(row for row in text.splitlines() if "sky" in row).split()
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("ids", ["bad.png", "[33]", "labelId"]),
        ("size", ["bad.png", "8x12", "16x12"]),
        ("truncated", ["bad.png", "damaged or cut off", "get it again"]),
        ("html", ["bad.png", "HTML page"]),
        ("colour", ["bad.png", "RGB picture"]),
        ("no label", ["bad", "image without a label"]),
        ("no image", ["bad", "label without an image"]),
    ],
)
def test_every_fault_names_the_file_and_the_cause(tmp_path, capsys, fault, words):
    flags = good(tmp_path)
    label = np.arange(192).reshape(12, 16) % 12
    pair(tmp_path, "bad", label)
    path = tmp_path / "labels" / "bad.png"
    if fault == "ids":
        pair(tmp_path, "bad", np.full((12, 16), 33))
    elif fault == "size":
        pair(tmp_path, "bad", np.zeros((12, 8)))
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:40])
    elif fault == "html":
        path.write_text("<!DOCTYPE html><html>log in</html>")
    elif fault == "colour":
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(path)
    elif fault == "no label":
        path.unlink()
    else:
        (tmp_path / "images" / "bad.png").unlink()
    code, text = verb(capsys, **flags)
    wrong = [line for line in text.splitlines() if "WRONG" in line]
    assert code == 3 and len(wrong) == 1, text
    for word in words:
        assert word in wrong[0], text
    assert "1 data set would make a run stop" in text


def test_binary_masks_and_labels_of_nothing_are_wrong(tmp_path, capsys):
    for i in range(2):
        pair(tmp_path / "binary", f"{i}", np.where(np.arange(192).reshape(12, 16) % 2, 255, 0))
        pair(tmp_path / "void", f"{i}", np.full((12, 16), 255))
    for name, word in (("binary", "binary masks"), ("void", "encoding")):
        code, text = verb(capsys, images=tmp_path / name / "images", labels=tmp_path / name / "labels")
        assert code == 3 and any("WRONG" in line and word in line for line in text.splitlines()), text


def test_a_long_list_is_cut_and_counted(tmp_path, capsys):
    flags = good(tmp_path)
    for i in range(9):
        pair(tmp_path, f"bad{i}", np.full((12, 16), 200))
    code, text = verb(capsys, **flags)
    assert code == 3 and "WRONG  9 labels with ids out of range" in text and "... and 4 more" in text and text.count("bad") == 5
    code, text = verb(capsys, **flags, limit=5)
    assert code == 3 and "WRONG  5 labels with ids out of range" in text and "more" not in text


def test_the_rate_in_words():
    assert data_check.rate(468, 2.0, 0.936) == "468 examples in 2.0 s: 234 a second, 2.0 ms of processor time each"
    assert data_check.rate(0, 0.0, 0.0) == "0 examples in 0.0 s: 0 a second"


def test_a_class_that_never_occurs_is_a_hint(tmp_path, capsys):
    pair(tmp_path, "a", np.arange(192).reshape(12, 16) % 4)
    code, text = verb(capsys, images=tmp_path / "images", labels=tmp_path / "labels", label_space="camvid11")
    assert code == 0 and any("hint" in line and "bicyclist" in line for line in text.splitlines())


def test_labels_that_are_all_named_otherwise(tmp_path, capsys):
    flags = good(tmp_path)
    for path in list((tmp_path / "labels").iterdir()):
        path.rename(path.with_stem(f"{path.stem}-mask"))
    code, text = verb(capsys, **flags)
    assert code == 3 and "3 images" in text and "the label of 'good0' may be 'good0-mask'" in text and "list file" in text


def test_a_public_data_set_by_name(tmp_path, capsys):
    """GTA5 as downloaded: palette labels, a broken pair that is left out by name, and far fewer files than published."""
    ids = np.kron(np.array([[7, 8, 11], [26, 23, 34]], np.uint8), np.ones((6, 6), np.uint8))
    palette = np.zeros((256, 3), np.uint8)
    palette[[7, 8, 11, 26, 23, 34]] = (128, 64, 128), (244, 35, 232), (70, 70, 70), (0, 0, 142), (70, 130, 180), (0, 0, 142)
    for name, size in (("00001", (12, 18)), ("15188", (5, 5))):
        pair(tmp_path, name, None, size)
        (tmp_path / "labels").mkdir(exist_ok=True)
        picture = Image.fromarray(ids, "P")
        picture.putpalette(palette.tobytes())
        picture.save(tmp_path / "labels" / f"{name}.png")
    code, text = verb(capsys, dataset="gta5", root=tmp_path)
    assert code == 0 and "good   1 examples" in text and "published are 24964" in text and "GTA5(" in text
    code, text = verb(capsys, **{"dataset": "gta5", "root": tmp_path, "with": "broken=True"})
    assert code == 3 and "15188.png: 18x12 but" in text and text.count("WRONG") == 1


def test_images_alone(tmp_path, capsys):
    flags = good(tmp_path)
    assert verb(capsys, images=flags["images"])[0] == 0


def test_every_data_set_of_a_config_once(tmp_path, capsys):
    flags = good(tmp_path / "day")
    good(tmp_path / "dusk")
    pair(tmp_path / "dusk", "bad", np.full((12, 16), 77))
    folders = {"make": "segjax.data.folders:FolderDataset", "label_space": "camvid11"}
    day = {**folders, "images": flags["images"], "labels": flags["labels"]}
    dusk = {**folders, "images": str(tmp_path / "dusk" / "images"), "labels": str(tmp_path / "dusk" / "labels")}
    gone = {**folders, "images": str(tmp_path / "gone")}
    stage = {"data": {"source": day, "target": {**dusk, "labelled": False}}, "evaluate": {"dusk": {**dusk, "size": (8, 8)}, "gone": gone}}
    config = ConfigDict({"order": ("a", "b"), "stages": {"a": stage, "b": stage}})
    code, text = verb(capsys, config=config)
    assert code == 3
    heads = [line for line in text.splitlines() if line.startswith("config.")]
    assert heads == [f"config.stages.a.{part}" for part in ("data.source", "data.target", "evaluate.dusk", "evaluate.gone")]
    assert text.count("WRONG") == 2 and "[77]" in text and "does not exist" in text and "2 data sets would" in text


def test_an_unlabelled_source_is_wrong(tmp_path, capsys):
    flags = good(tmp_path)
    source = {"make": "segjax.data.folders:FolderDataset", "images": flags["images"]}
    code, text = verb(capsys, config=ConfigDict({"order": ("a",), "stages": {"a": {"data": {"source": source}, "evaluate": {}}}}))
    assert code == 3 and "no label was read" in text


def test_machines_read_the_same(tmp_path, capsys):
    flags = good(tmp_path)
    pair(tmp_path, "bad", np.full((12, 16), 33))
    assert verb(capsys, **flags, json=tmp_path / "out" / "check.json")[0] == 3
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    (found,) = content["datasets"]
    assert not content["ok"] and not found["ok"] and found["examples"] == 4 and found["sizes"] == {"16x12": 4}
    assert found["pixels"]["sky"] == 48 and found["images_with"]["sky"] == 3 and found["pixels"]["ignored"] == 48
    (fault,) = found["faults"]
    assert fault["kind"] == "label_ids" and fault["file"].endswith("labels/bad.png") and fault["ids"] == [33] and fault["wrong"]
    assert "label ids" in fault["cause"] and "labelId" in fault["fix"]
    (tmp_path / "labels" / "bad.png").unlink()
    (tmp_path / "images" / "bad.png").unlink()
    assert verb(capsys, **flags, json=tmp_path / "check.json")[0] == 0
    assert json.loads((tmp_path / "check.json").read_text())["datasets"][0]["faults"] == []
    assert verb(capsys, images=tmp_path / "gone", json=tmp_path / "check.json")[0] == 3
    assert "does not exist" in json.loads((tmp_path / "check.json").read_text())["datasets"][0]["faults"][0]["found"]


@pytest.mark.parametrize("flags", [{}, {"images": "x", "config": "y"}, {"images": "x", "limit": -1}, {"images": "x", "threads": -1}])
def test_flags_that_make_no_sense(capsys, flags):
    with pytest.raises(ConfigError, match="data check"):
        verb(capsys, **flags)


def test_real_photographs(real_data, capsys):
    code, text = verb(capsys, file_list=real_data / "camvid" / "val.txt", label_space="camvid11", limit=20)
    assert code == 0 and "WRONG" not in text and "road" in text
