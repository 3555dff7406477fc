"""Two processes of two devices each, on loopback, are one run: its numbers, its saves, its order of data, its end when one of them ends."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import conftest
import numpy as np
import pytest
from processes import environment, free_port, start_two

from segjax import cli
from segjax.weights import safetensors_io

STAGES = {"fda": "01-fda", "contrast": "02-contrast"}
CONFIG = """
    import os
    import sys
    import time

    sys.path.insert(0, CONFIGS)
    import base
    from segjax.data.stream import Stream
    from segjax.errors import DataError

    fill = Stream.fill


    def troubled(self, orders, position, *arguments):
        if position >= int(os.environ.get("TEST_STUCK", 1000)):
            time.sleep(600)
        if os.environ.get("TEST_BROKEN"):
            raise DataError("a damaged disk")
        return fill(self, orders, position, *arguments)


    Stream.fill = troubled


    def get_config():
        config = base.run("many", steps=10, batch_size=4)
        config.log_every, config.checkpoint_every, config.mesh.data = 1, 4, 4
        scenes = {"make": base.STREET_SCENES, "size": (32, 32), "length": 8, "split": "train"}
        day, dusk = {**scenes, "look": "day"}, {**scenes, "look": "dusk"}
        shared = {
            "model": {"make": "many_net:Tiny", "num_classes": 19, "dtype": "float32"},
            "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "schedule": "poly", "power": 0.9},
            "evaluate": {"dusk": {**dusk, "length": 4, "split": "val"}},
        }
        crops = {"source": {**day, "cache": True}, "target": {**dusk, "cache": True}, "crop": (32, 32)}
        base.add_stage(config, "fda", method=base.fda(betas=(0.05, 0.1)), data=crops, **shared)
        contrast = base.fda_contrastive(samples=64, contrast_weight=0.5, ema_decay=0.9)
        base.add_stage(config, "contrast", method=contrast, data={**crops, "target_labels": True}, **shared)
        return config
"""


@dataclasses.dataclass(frozen=True)
class Runs:
    """argv: of `segjax run` without its folder. env: of a process of two. one, two: folders of finished runs. texts: what two printed."""

    argv: list[str]
    env: dict[str, str]
    one: pathlib.Path
    two: pathlib.Path
    texts: list[str]


@pytest.fixture(scope="module")
def runs(traced_once, tmp_path_factory) -> Runs:
    """Both stages in this process over four devices, and in two by the SLURM script under a launcher that starts them here."""
    place = tmp_path_factory.mktemp("many")
    (place / "many_net.py").write_text(textwrap.dedent(conftest.NET))
    (place / "many.py").write_text(textwrap.dedent(CONFIG).replace("CONFIGS", repr(str(conftest.CONFIGS))))
    sys.path.insert(0, str(place))
    argv = [f"--config={place / 'many.py'}"]
    assert cli.main(["run", *argv, f"--workdir={place / 'one'}"]) == 0
    (place / "srun").write_text(
        '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\nfor i in 0 1; do\n'
        f'SLURM_PROCID=$i SLURM_LOCALID=$i "$@" > {place}/out$i 2>&1 & pids+=($!)\ndone\n'
        'for pid in "${pids[@]}"; do wait "$pid" || code=$?; done\nexit "${code:-0}"\n'
    )
    (place / "srun").chmod(0o755)
    env = environment(place / "cache", path=str(place), devices=2) | {"SEGJAX_JOIN_TIMEOUT": "120"}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # twelve processes of one machine
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    slurm |= {"JAX_COORDINATOR_PORT": str(free_port()), "SEGJAX": f"{sys.executable} -m segjax", "PATH": f"{place}:{os.environ['PATH']}"}
    script = str(conftest.CONFIGS.parent / "scripts" / "launch_slurm.sh")
    done = subprocess.run(["bash", script, "run", *argv, f"--workdir={place / 'two'}"], env=env | slurm, timeout=600, check=False)
    texts = [(place / f"out{index}").read_text() for index in range(2)]
    assert done.returncode == 0, "\n".join(texts)
    return Runs(argv, env, place / "one", place / "two", texts)


def weights(place: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors_io.read(place / "weights.safetensors")[0]


def losses(place: pathlib.Path) -> dict[int, float]:
    """Step -> the first loss of its row; a step that is there twice fails."""
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 11))
    return {row["step"]: next(value for key, value in row.items() if key.startswith("loss/")) for row in rows}


def assert_alike(place: pathlib.Path, other: pathlib.Path) -> None:
    """The network after 10 steps to 1e-5, and the loss of every step: another order of the data would change both."""
    for name, value in weights(other).items():
        np.testing.assert_allclose(weights(place)[name], value, atol=1e-5, err_msg=name)
    assert losses(place) == pytest.approx(losses(other), abs=1e-5)


def until_step(run: Runs, to: pathlib.Path, stage: str, source: pathlib.Path, last: int) -> None:
    """The folder of a stage as it was when the save of step `last` was its newest."""
    shutil.copytree(source / STAGES[stage], to / STAGES[stage])
    for name in ("done.json", "weights.safetensors"):
        (to / STAGES[stage] / name).unlink()
    for save in (to / STAGES[stage] / "checkpoints").iterdir():
        if int(save.name) > last:
            shutil.rmtree(save)


def test_two_processes_do_what_one_does(runs):
    for stage in STAGES.values():
        assert_alike(runs.two / stage, runs.one / stage)
        told = json.loads((runs.two / stage / "run.json").read_text())
        assert told["processes"] == 2 and len(told["devices"]) == 4
        scores = [json.loads((place / stage / "eval/dusk-val.json").read_text())["confusion"] for place in (runs.one, runs.two)]
        assert np.sum(scores[0]) == np.sum(scores[1]) and np.abs(np.subtract(*scores)).sum() < 0.01 * np.sum(scores[0])
        drawn = [sorted(path.name for path in (place / stage / "eval").rglob("*.prediction.png")) for place in (runs.one, runs.two)]
        assert drawn[0] == drawn[1] != []
    assert "| contrast" in runs.texts[0] and "step 10/10" in runs.texts[0] and "step" not in runs.texts[1].replace("steps", "")


def test_a_save_of_two_goes_on_in_one(runs, tmp_path, capsys):
    for stage in STAGES:
        until_step(runs, tmp_path / "run", stage, runs.two, 4)
    assert cli.main(["run", *runs.argv, f"--workdir={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.count("resumed from step 4") == 2
    for stage in STAGES.values():
        assert_alike(tmp_path / "run" / stage, runs.one / stage)


def test_process_0_is_killed_the_other_says_so_and_both_go_on(runs, tmp_path):
    """The first stage from a save of two, the second from a save of one. jax's service ends with process 0 and does not speak."""
    until_step(runs, tmp_path, "fda", runs.two, 4)
    until_step(runs, tmp_path, "contrast", runs.one, 4)
    argv = ["run", *runs.argv, f"--workdir={tmp_path}"]
    first, second = start_two(argv, runs.env | {"TEST_STUCK": "32", "SEGJAX_HEARTBEAT": "10"})  # 32: the first element of step 9
    deadline = time.monotonic() + 600
    while not (tmp_path / "01-fda/checkpoints/8").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    text = second.communicate(timeout=600)[0]
    assert second.returncode == 1 and time.monotonic() - killed < 10, text
    gloos = lambda line: "[Gloo]" in line or "peer ranks" in line  # of several threads, whose lines may run into each other
    said = [line for line in text.splitlines() if line and not gloos(line)]
    assert len(said) == 1 and said[0].startswith("segjax: process 0 (") and "is lost" in said[0], text
    first.communicate()
    assert not (tmp_path / "01-fda/done.json").exists()

    again = start_two(argv, runs.env)
    texts = [run.communicate(timeout=600)[0] for run in again]
    assert [run.returncode for run in again] == [0, 0], "\n".join(texts)
    assert re.findall(r"resumed from step (\d+)", texts[0]) == ["8", "4"], texts[0]
    for name, value in weights(runs.two / "01-fda").items():
        np.testing.assert_array_equal(weights(tmp_path / "01-fda")[name], value, err_msg=name)
    assert losses(tmp_path / "01-fda") == losses(runs.two / "01-fda")
    assert_alike(tmp_path / "02-contrast", runs.one / "02-contrast")


@pytest.mark.parametrize(
    ("second", "code", "said"),
    [
        (
            ("--config.stages.fda.optimizer.lr=0.5", "--on-change=continue"),
            2,
            "has config.stages.fda.optimizer.lr 0.5 and process 0 0.02; the argument --on-change=continue given and process 0 absent",
        ),
        (("TEST_BROKEN=1",), 3, "a damaged disk"),
    ],
)
def test_one_that_is_unlike_or_fails_ends_both(runs, tmp_path, second, code, said):
    both = start_two(["run", *runs.argv, f"--workdir={tmp_path}"], runs.env, second=second, mpi=len(second) == 2)
    texts = [run.communicate(timeout=600)[0] for run in both]
    assert [run.returncode for run in both] == [code, code], texts
    for text in texts:
        lines = [line for line in text.splitlines() if line.startswith("segjax: ")]
        assert len(lines) == 1 and said in lines[0] and "Traceback" not in text, text
    assert "segjax: process 1 (" in texts[0]
