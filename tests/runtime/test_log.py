import json
import os
import subprocess
import sys

import pytest

from segjax.errors import SegjaxError
from segjax.runtime.log import MetricsWriter, Steps, say


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_events(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"loss/ce": 1.5})
    assert rows(tmp_path) == [{"step": 1, "loss/ce": 1.5}]  # flushed before close
    writer.write(2, {"loss/ce": float("nan")})
    writer.close()
    assert rows(tmp_path)[1] == {"step": 2, "loss/ce": "nan"}
    assert any(p.name.startswith("events") for p in (tmp_path / "tb").iterdir())


def test_resume_drops_what_will_be_run_again_and_a_cut_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"loss/ce": step})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    writer = MetricsWriter(tmp_path, start_step=2)
    writer.write(3, {"loss/ce": 30})
    writer.close()
    assert [(row["step"], row["loss/ce"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 30)]


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegjaxError, match="cannot be written"):
        MetricsWriter(tmp_path / "file" / "run")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path / "other")
    writer._file = open(tmp_path / "metrics.jsonl", "a")
    with pytest.raises(SegjaxError, match="No space left"):
        writer.write(1, {"loss/ce": 1.0})


def test_plain_lines(capsys):
    with Steps(10, 20, bar=False) as steps:
        steps.report(15, {"loss/ce": 0.5, "images_per_s": 8.0})
    assert capsys.readouterr().out.startswith("step 15/20  loss/ce 0.5  8.0 images/s  0:00:0")


def test_bar_takes_lines_above_it(capsys):
    with Steps(0, 2, bar=True) as steps:
        steps.report(1, {"loss/ce": 0.5})
        say("a [line] above")
        steps.advance(2)
        assert Steps.shown.tasks[0].completed == 2 and "0.5" in Steps.shown.tasks[0].fields["text"]
    assert Steps.shown is None


def test_a_closed_pipe_does_not_stop_the_run():
    code = "from segjax.runtime.log import say\nfor i in range(20000): say('x' * 100)\nimport sys; print('went on', file=sys.stderr)"
    found = subprocess.run(f'"{sys.executable}" -c "{code}" | head -1', shell=True, capture_output=True, text=True)
    assert "went on" in found.stderr and found.stdout.strip() == "x" * 100
