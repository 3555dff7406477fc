"""`segjax report` on run directories of the form that `segjax run` leaves."""

import argparse
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from segjax.errors import ConfigError, DataError
from segjax.verbs import report, report_header, report_pictures, report_read, report_svg, report_tables

CLASSES = ["sky", "building", "road", "tree", "car"]
PALETTE = [[70, 130, 180], [70, 70, 70], [128, 64, 128], [107, 142, 35], [0, 0, 142]]
STAGES = ("source_only", "adabn", "fda")


def score(rng, quality: float, dataset: str) -> dict:
    """A score as `segjax evaluate` writes it; the last class is absent."""
    confusion = rng.integers(0, 1 + int(1000 * (1 - quality)), (5, 5)) + np.diag([int(4000 * quality)] * 5)
    confusion[4] = 0
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    values = [float(v) for v in iou[:4]] + [None]
    return {
        "dataset": dataset,
        "split": "val",
        "step": 40,
        "images": 62,
        "miou": float(np.mean(iou[:4])),
        "classes": CLASSES,
        "palette": PALETTE,
        "iou": values,
        "confusion": confusion.tolist(),
    }


def write_samples(folder: pathlib.Path, rng, quality: float) -> None:
    folder.mkdir(parents=True)
    truth = np.repeat(np.arange(4), 16)[:, None] * np.ones((1, 96), int)
    guess = np.where(rng.random(truth.shape) < quality, truth, 4)
    colours = np.array(PALETTE, np.uint8)
    Image.fromarray(colours[truth]).save(folder / "dusk_0001.truth.png")
    Image.fromarray(colours[guess]).save(folder / "dusk_0001.prediction.png")
    Image.fromarray(colours[truth] // 2 + 40).save(folder / "dusk_0001.image.jpg")


def write_run(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Three stages, two data sets, pictures for one; the middle stage does not train."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(STAGES, 1):
        stage = folder / f"{number:02d}-{name}"
        (stage / "eval").mkdir(parents=True)
        config = {"name": "day <to> dusk", "seed": seed, "steps": 40, "method": {"make": f"segjax.methods.{name}:make"}}
        (stage / "config.json").write_text(json.dumps(config))
        info = {
            "command": ["segjax", "run", "--config=configs/x.py"],
            "versions": {"jax": "0.10.2"},
            "devices": ["tpu TPU v5e 0", "tpu TPU v5e 1"],
            "started": "2026-11-20 15:00",
        }
        (stage / "run.json").write_text(json.dumps(info))
        if name != "adabn":
            rows = [{"step": s, "loss/ce": 2 * 0.95**s + 0.1 * rng.random(), "images_per_sec": 12.5} for s in range(40)]
            (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "loss/')
        quality = 0.4 + 0.15 * number
        for dataset in ("day", "dusk"):
            (stage / "eval" / f"{dataset}-val.json").write_text(json.dumps(score(rng, quality, dataset)))
        write_samples(stage / "eval" / "dusk-val" / "samples", rng, quality)
        (stage / "done.json").write_text("{}")
    return folder


def verb(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args(list(arguments)))


class Balance(html.parser.HTMLParser):
    """Fails on a tag that is closed wrongly; collects sources and headings."""

    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page: str) -> Balance:
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_one_run_gives_one_self_contained_page(tmp_path):
    folder = write_run(tmp_path / "main")
    assert verb(str(folder)) == 0
    page = (folder / "report.html").read_text()
    reader = parsed(page)
    assert not re.search(r"https?://", page) and "<script" not in page and "@import" not in page
    assert all(source.startswith(("data:image/", "#")) for source in reader.sources)
    text = " ".join(reader.text)
    for expected in (
        "day <to> dusk",
        "source_only",
        "adabn",
        "fda",
        "dusk-val",
        "loss/ce",
        "segjax run --config=configs/x.py",
        "2 × TPU v5e",
        *CLASSES,
    ):
        assert expected in text, expected
    assert page.count("data:image/") == 6  # image, truth, three predictions, better-worse; once each
    assert page.count('<figure class="confusion">') == 6
    assert "segjax.methods.fda:make" in page and "Between the stages" in page
    assert not list(folder.glob(".report*"))


def test_numbers_on_the_page_are_those_of_the_scores(tmp_path):
    folder = write_run(tmp_path / "main")
    read = [json.loads((folder / f"0{i}-{n}" / "eval" / "dusk-val.json").read_text())["miou"] for i, n in enumerate(STAGES, 1)]
    table = report_tables.summary([report_read.read_run(folder)])
    for value in read:
        assert report_tables.percent(value) in table
    assert report_tables.percent(read[2] - read[0], signed=True) in table
    best = re.findall(r'<tr><th scope="row">(\w+)</th>(?:(?!</tr>).)*class="best"', table)
    assert best == ["fda"]
    assert "4 of 5 classes present" in table


def test_several_runs_are_mean_and_spread_paired_by_run(tmp_path):
    folders = [write_run(tmp_path / f"seed{s}", s) for s in range(3)]
    out = tmp_path / "all" / "report.html"
    assert verb(*map(str, folders), f"--output={out}") == 0
    page = out.read_text()
    parsed(page)
    runs = [report_read.read_run(f) for f in folders]
    values = [r.stages[2].scores["dusk-val"].miou for r in runs]
    assert f'{report_tables.percent(np.mean(values))}<span class="pm"> ± {report_tables.percent(np.std(values, ddof=1))}</span>' in page
    assert "better in 3 of 3 runs" in page and "Between the runs" in page
    assert 'title="seed0: ' in page
    assert page.count('class="line"') == 2 * 2 * 3  # two trained stages, two metrics, three runs
    summed = sum(r.stages[0].scores["dusk-val"].confusion for r in runs)
    assert f"sky predicted as sky: {100 * summed[0, 0] / summed[0].sum():.1f} % ({summed[0, 0]:,} pixels)" in page


def test_a_single_stage_and_a_run_still_going(tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/ce": 2.0}\n{"step": 2, "loss/ce": NaN}\n{"step": 3, "loss/ce": 1.0}\n{"st')
    assert verb(str(folder)) == 0
    page = (folder / "report.html").read_text()
    parsed(page)
    assert "No score yet" in page and "loss/ce" in page and "0 of 1 finished" in page


@pytest.mark.parametrize("case", ["missing", "empty", "broken", "not a score", "lengths"])
def test_one_clear_line_for_what_is_no_run(tmp_path, case):
    folder = tmp_path / "x"
    if case != "missing":
        (folder / "eval").mkdir(parents=True)
    if case == "empty":
        (folder / "eval").rmdir()
    texts = {"broken": "{", "not a score": "{}", "lengths": '{"classes": ["a", "b"], "iou": [1.0]}'}
    if case in texts:
        (folder / "eval" / "day-val.json").write_text(texts[case])
    with pytest.raises(DataError) as error:
        verb(str(folder))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_an_output_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "main")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        verb(str(folder), f"--output={tmp_path / 'file' / 'report.html'}")


def test_answers_outside_the_classes_are_a_column_and_part_of_the_row():
    svg = report_svg.confusion_matrix("x", ("a", "b"), np.array([[6, 2], [0, 0]]), np.array([2, 0]))
    assert "a predicted as a: 60.0 % (6 pixels)" in svg and "a predicted as other: 20.0 % (2 pixels)" in svg
    assert "other" not in report_svg.confusion_matrix("x", ("a", "b"), np.array([[6, 2], [0, 0]]), np.array([0, 0]))


def test_data_sets_stand_in_the_order_of_the_config(tmp_path):
    folder = write_run(tmp_path / "main")
    for stage in folder.iterdir():
        (stage / "config.json").write_text('{"evaluate": {"dusk": {}, "day": {}}}')
    assert list(report_read.read_run(folder).stages[0].scores) == ["dusk-val", "day-val"]


def test_the_head_reads_both_forms_of_devices_and_shortens_the_command():
    assert report_header.devices(["cpu cpu 0", "cpu cpu 1"]) == "2 × cpu"
    assert report_header.devices({"platform": "tpu", "kind": "TPU v5e", "count": 4, "processes": 2}) == "4 × TPU v5e, 2 processes"
    assert report_header.command(["/x/bin/segjax", "run", "--a=b"]) == "segjax run --a=b"
    assert report_header.command("/x/segjax/__main__.py run") == "python -m segjax run"


def test_a_resumed_run_counts_the_last_line_of_a_step(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "a": 5}\n{"step": 1, "a": 7}\n{"step": 2, "a": 6}\n')
    steps, values = report_read.read_run(tmp_path).stages[0].metrics["a"]
    assert steps.tolist() == [1, 2] and values.tolist() == [7, 6]


def test_smoothing_is_unbiased_and_leaves_nan_out():
    np.testing.assert_allclose(report_svg.smooth(np.full(20, 3.0)), 3.0)
    np.testing.assert_allclose(report_svg.smooth(np.array([1.0, np.nan, 1.0])), 1.0)
    assert report_svg.smooth(np.array([0.0, 1.0]), 0.5).tolist() == pytest.approx([0.0, 2 / 3])


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 47, [10, 20, 30, 40]), (5, 5, [5])])
def test_ticks_are_round(low, high, expected):
    assert report_svg.ticks(low, high) == expected


def test_changes_colours_better_and_worse():
    truth = np.array([[[1, 1, 1]] * 4 + [[0, 0, 0]]], np.uint8)
    no, yes = [9, 9, 9], [1, 1, 1]
    before, after = np.array([[no, yes, yes, no, no]], np.uint8), np.array([[yes, no, yes, no, yes]], np.uint8)
    picture = report_pictures.changes(truth, before, after)
    kinds = (report_pictures.BETTER, report_pictures.WORSE, report_pictures.RIGHT_BOTH, report_pictures.WRONG_BOTH, (0, 0, 0))
    assert [tuple(p) for p in picture[0]] == list(kinds)
    assert report_pictures.changes(truth[:, :2], before, after) is None


def test_wide_pictures_shrink_and_label_colours_stay_exact(tmp_path):
    import base64
    import io

    colours = np.array(PALETTE, np.uint8)[np.random.default_rng(0).integers(0, 5, (40, 1000))]
    source = report_pictures._png(Image.fromarray(colours))
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))
    assert small.shape[1] == report_pictures.WIDEST
    assert {tuple(c) for c in small.reshape(-1, 3).tolist()} <= {tuple(c) for c in PALETTE}
