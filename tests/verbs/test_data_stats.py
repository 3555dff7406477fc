"""`segjax data stats` and `segjax data browse`: files left behind, what is reused, and flags that make no sense."""

import json
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from segjax import cli
from segjax.data import daformer_stats
from segjax.data.folders import FolderDataset
from segjax.errors import ConfigError, DataError
from segjax.verbs import data, data_browse, data_source, data_stats


@pytest.fixture
def folder(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(3):
        label = np.full((40, 60), 3, np.uint8)
        label[: 10 * index] = 8
        label[0, 0] = 11
        Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{index}.png")
    return tmp_path


def parse(action: str, *flags: str, config=None):
    args = cli._parse("data", data, [action, *flags])
    if config is not None:
        args.config = config
    return args


def flags(folder) -> tuple[str, ...]:
    return f"--images={folder}/images", f"--labels={folder}/labels", "--label-space=camvid11"


def test_stats_leaves_four_files_and_a_table(folder, capsys):
    assert data.run(parse("stats", *flags(folder), f"--workdir={folder}/out")) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "%" in line}
    # 40x60 pixels, one of them void; 0, 10 and 20 rows of car.
    assert rows["road"][1:4] == ["75.017%", "3", "0"] and rows["car"][1:4] == ["24.983%", "2", "0"] and "(ignored)" in rows, text
    share = np.array([5399, 1798]) / 7197
    expected = np.exp(-share / 0.01) / np.exp(-share / 0.01).sum()
    np.testing.assert_allclose([float(rows["road"][4]), float(rows["car"][4])], expected, rtol=0.05)
    content = json.loads((folder / "out" / "stats.json").read_text())
    assert content["images"]["0.png"][3] == 2399 and content["images"]["2.png"][8] == 20 * 60 - 1
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(["stats.json", *daformer_stats.FILES])
    (first, *_) = json.loads((folder / "out" / daformer_stats.FILES[0]).read_text())
    assert first == {"3": 2399, "file": f"{folder}/labels/0_labelTrainIds.png"}


def test_stats_are_counted_once(folder, capsys):
    work = f"--workdir={folder}/out"
    for more, counted in (((), True), ((), False), (("--force",), True), (("--exclude=0",), True)):
        data.run(parse("stats", *flags(folder), work, *more))
        assert ("count" in capsys.readouterr().err) == counted, more
    late = (folder / "out" / "stats.json").stat().st_mtime + 5
    data.run(parse("stats", *flags(folder), work))
    os.utime(folder / "labels" / "1.png", (late, late))
    capsys.readouterr()
    data.run(parse("stats", *flags(folder), work))
    assert "count" in capsys.readouterr().err


def test_stats_from_daformers_files(folder, capsys):
    data.run(parse("stats", *flags(folder), f"--workdir={folder}/a"))
    first = capsys.readouterr().out
    for name in daformer_stats.FILES:
        data.run(parse("stats", *flags(folder), f"--workdir={folder}/b", f"--from={folder}/a/{name}"))
        found = capsys.readouterr()
        table = [line for line in first.splitlines() if "%" in line and "ignored" not in line]
        assert all(line in found.out for line in table) and "count" not in found.err
        assert json.loads((folder / "b" / "stats.json").read_text())["ignored"] is None


def test_a_folder_for_each_labelled_data_set_of_a_config(folder, capsys):
    spec = {"make": "segjax.data.folders:FolderDataset", "images": f"{folder}/images", "labels": f"{folder}/labels"}
    day = {**spec, "label_space": "camvid11", "include": ("0", "1")}
    dusk = {**spec, "label_space": "camvid11", "include": "2"}
    stage = {"data": {"source": day, "target": {**dusk, "labelled": False}}, "evaluate": {"dusk": {**dusk, "size": (8, 8)}}}
    config = ConfigDict({"order": ("a",), "stages": {"a": stage}})
    assert data.run(parse("stats", f"--workdir={folder}/out", config=config)) == 0
    assert {path.parent.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("stats.json")} == {
        "a/data.source",
        "a/evaluate.dusk",
    }
    with pytest.raises(ConfigError, match="belongs to one data set"):
        data.run(parse("stats", f"--workdir={folder}/out", "--from=x", config=config))
    assert data.run(parse("browse", f"--output={folder}/s.png", config=config)) == 0
    assert len(list(folder.glob("s-a-*.png"))) == 3


def test_a_mixture_is_looked_at_by_its_parts(folder):
    spec = {"make": "segjax.data.folders:FolderDataset", "images": f"{folder}/images", "labels": f"{folder}/labels"}
    parts = tuple({**spec, "label_space": "camvid11", "include": word, "weight": weight} for word, weight in (("0", 2.0), ("1", 1.0)))
    source = {"make": "segjax.data.mixture:Mixture", "parts": parts}
    config = ConfigDict({"order": ("a",), "stages": {"a": {"data": {"source": source}, "evaluate": {}}}})
    found = data_source.sources(parse("check", config=config))
    assert [one.where for one in found] == [f"config.stages.a.data.source.parts[{k}]" for k in (0, 1)]
    assert [data_source.open_source(one).name(0) for one in found] == ["0.png", "1.png"]


def test_stats_need_labels(folder):
    with pytest.raises(DataError, match="has labels to count"):
        data.run(parse("stats", f"--images={folder}/images", f"--workdir={folder}/out"))


def test_browse_writes_one_picture(folder, capsys):
    assert data.run(parse("browse", *flags(folder), f"--output={folder}/new/sheet.png", "--width=100", "--columns=2")) == 0
    with Image.open(folder / "new" / "sheet.png") as page:
        assert page.mode == "RGB" and f"{page.width}x{page.height}" in capsys.readouterr().out
    assert data.run(parse("browse", f"--images={folder}/images", f"--output={folder}/plain.png", "--names=2.png")) == 0


def test_browse_by_class_counts_or_reads_the_counts(folder, capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr(data_browse.browse, "cell", lambda dataset, index, **k: chosen.append(index) or _real(dataset, index, **k))
    sheet = f"--output={folder}/sheet.png"
    data.run(parse("browse", *flags(folder), sheet, "--class=car", "--count=5"))
    assert sorted(chosen) == [1, 2] and "count" in capsys.readouterr().err
    data.run(parse("stats", *flags(folder), f"--workdir={folder}/out"))
    capsys.readouterr()
    data.run(parse("browse", *flags(folder), sheet, "--class=car", "--count=1", f"--stats={folder}/out"))
    assert chosen[2:] == [2] and "count" not in capsys.readouterr().err
    with pytest.raises(DataError, match="holds fence"):
        data.run(parse("browse", *flags(folder), sheet, "--class=fence"))
    with pytest.raises(ConfigError, match="camvid11 has sky"):
        data.run(parse("browse", *flags(folder), sheet, "--class=bus"))


_real = data_browse.browse.cell


@pytest.mark.parametrize(
    "given", [("--count=0",), ("--opacity=1.5",), ("--width=8",), ("--columns=0",), ("--class=car", "--names=0"), ("--output=a.jpg",)]
)
def test_browse_flags_that_make_no_sense(folder, given):
    with pytest.raises(ConfigError, match="data browse"):
        data.run(parse("browse", *flags(folder), f"--output={folder}/sheet.png", *given))


@pytest.mark.parametrize("given", [("--temperature=0",), ("--threads=-1",)])
def test_stats_flags_that_make_no_sense(folder, given):
    with pytest.raises(ConfigError, match="data stats"):
        data.run(parse("stats", *flags(folder), f"--workdir={folder}/out", *given))


def test_sources_by_name(folder):
    spec = data_source.source_spec(parse("check", "--dataset=gta5", "--root=x", "--split=train", "--with=resize=(72, 128)", "--exclude=a"))
    assert spec == {"make": "segjax.data.readers.gta5:GTA5", "root": "x", "split": "train", "exclude": ("a",), "resize": (72, 128)}
    for name in data_source.reader_names():
        assert data_source.reader(name).startswith(f"segjax.data.readers.{name}:")
    assert data_source.reader("my.own:Thing") == "my.own:Thing"
    (source,) = data_source.sources(parse("check", "--dataset=acdc", "--root=x", "--split=val", "--with=condition=night"))
    assert source.spec["condition"] == "night" and source.where == "acdc val" and data_source._takes(FolderDataset, "strict")
    assert data_source._takes(data_source.build.import_string(source.spec["make"], ""), "strict")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("--dataset=gta",), "did you mean 'gta5'"),
        (("--dataset=gta5:Other", "--root=x"), "has GTA5"),
        (("--dataset=gta5", "--root=x", "--images=y"), "got --dataset=NAME and --images=DIR"),
        (("--images=x", "--split=train"), "--split=train does not go with --images"),
        (("--dataset=gta5", "--root=x", "--labels=y"), "--labels=y does not go with --dataset"),
        (("--images=x", "--with=resize"), "expected KEY=VALUE"),
        ((), "got none"),
    ],
)
def test_sources_that_make_no_sense(given, match):
    with pytest.raises(ConfigError, match=match):
        data_source.sources(parse("check", *given))


def test_the_actions_of_data(capsys):
    assert set(cli.actions("data")) >= {"browse", "check", "stats"} and "data-check" not in cli.verbs()
    with pytest.raises(ConfigError, match="did you mean --images"):
        parse("check", "--imges=x")
    assert data_stats.TEMPERATURE == 0.01
