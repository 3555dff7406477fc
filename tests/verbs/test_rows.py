"""Rows that average over stages: in a run's table, in its report, and what is wrong with them."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax.errors import ConfigError
from segjax.verbs import report, run, train
from segjax.verbs.report_read import read_run


def done(miou):
    return {"scores": {"dusk": {"headline": "mIoU2", "miou": miou, "means": {"mIoU2": miou}, "images": 3}}}


def test_a_runs_table_has_the_mean():
    rows = run._rows(ConfigDict({"rows": {"dacs": ("dacs_1", "dacs_2")}}), ("day", "dacs_1", "dacs_2"))
    parts = {"day": done(0.2), "dacs_1": done(0.4), "dacs_2": done(0.5)}
    table = train.summary(parts | run._means(parts, rows))
    assert table.splitlines()[-1].split() == ["|", "dacs,", "mean", "of", "2", "|", "45.0", "|"]
    for wrong in ({"dacs": ("dacs_1", "dacs_3")}, {"day": ("dacs_1",)}, {"dacs": ()}):
        with pytest.raises(ConfigError, match=r"config.rows\."):
            run._rows(ConfigDict({"rows": wrong}), ("day", "dacs_1", "dacs_2"))


def test_a_report_has_the_mean_of_every_class(tmp_path):
    for number, (name, iou) in enumerate((("day", (0.1, 0.3)), ("dacs_1", (0.2, 0.6)), ("dacs_2", (None, 0.8))), 1):
        place = tmp_path / f"{number:02d}-{name}"
        (place / "eval").mkdir(parents=True)
        (place / "done.json").write_text("{}")
        score = {"dataset": "dusk", "classes": ["sky", "road"], "iou": iou, "miou": float(np.mean([x or 0 for x in iou]))}
        (place / "eval" / "dusk-val.json").write_text(json.dumps(score))
    (tmp_path / "rows.json").write_text(json.dumps({"dacs": ["dacs_1", "dacs_2"], "unfinished": ["dacs_1", "dacs_9"]}))
    stages = read_run(tmp_path).stages
    assert [stage.name for stage in stages] == ["day", "dacs_1", "dacs_2", "dacs, mean of 2"]
    mean = stages[-1].scores["dusk-val"]
    np.testing.assert_allclose(mean.iou, (0.2, 0.7))
    assert mean.miou == pytest.approx(0.4) and stages[-1].done
    page = report.write_report([tmp_path], tmp_path / "report.html").read_text()
    assert "dacs, mean of 2" in page
