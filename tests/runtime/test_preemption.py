import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import processes
import pytest
import toy

from segjax.errors import ConfigError
from segjax.runtime import loop
from segjax.runtime import mesh as meshes
from segjax.runtime import workdir as workdirs
from segjax.runtime.preemption import Preemption

TOY = pathlib.Path(toy.__file__)


def start(workdir, *flags):
    environment = processes.environment(workdir.parent / "cache", devices=2) | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # as in this process
    command = [sys.executable, str(TOY), str(workdir), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def until(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.005)


def test_killed_and_stopped_runs_equal_the_unbroken_one(tmp_path):
    """kill -9 inside a save, steps after the last whole one, then SIGTERM and SIGINT: the third start ends with the unbroken run's bits.

    The unbroken one is in this process, over as many devices.
    """
    broken = tmp_path / "broken"
    rows = lambda: len((broken / "metrics.jsonl").read_text().splitlines()) if (broken / "metrics.jsonl").exists() else 0
    saved = lambda: sorted(p.name for p in (broken / "checkpoints").iterdir()) if (broken / "checkpoints").is_dir() else []
    begun = lambda: [name for name in saved() if name.endswith(".tmp") and (broken / "checkpoints" / name / "state").exists()]

    one = start(broken, "--pause=0.2", "--slow-save=1.5")
    until(lambda: "4" in saved() and begun() and rows() >= 5, one)
    one.kill()
    one.wait()
    assert begun() and "20" not in saved()

    two = start(broken, "--pause=0.3", "--slow-save=0.3")
    before = rows()
    until(lambda: before < rows() and rows() % 4 == 1, two)
    two.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    two.send_signal(signal.SIGINT)
    text, errors = two.communicate(timeout=60)
    assert two.returncode == 75 and "SIGTERM: saved step" in text and "SIGTERM: saving after this step" in errors
    assert "is stale and taken over" in text and "resumed from step" in text
    assert not any(name.endswith(".tmp") for name in saved()) and max(map(int, saved())) % 4

    three = start(broken)
    text, errors = three.communicate(timeout=60)
    assert three.returncode == 0, errors
    how = {"mesh": meshes.make_mesh(2), "checkpoint_every": 20, "log_every": 1}
    whole = loop.train(toy.make(), batches=toy.batches, steps=20, workdir=tmp_path / "whole", **how)
    assert text.split("digest ")[1].split()[0] == toy.digest(whole)
    assert rows() == 20


def test_handlers_come_and_go():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert preemption.requested(0) is None
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested(1) == preemption.pending() == "SIGINT"
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_installs_nothing():
    found = []

    def inside():
        with Preemption() as preemption:
            found.append((preemption.requested(0), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=inside)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert found == [(None, before)]


def test_one_run_at_a_time(tmp_path, capsys):
    with workdirs.claim(tmp_path):
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"):
            with workdirs.claim(tmp_path):
                pass
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    "holder, age, taken",
    [
        ('{"host": "elsewhere", "pid": 1, "born": "1"}', 0, False),
        ('{"host": "elsewhere", "pid": 1, "born": "1"}', 3600, True),
        ('{"host": "HERE", "pid": 1, "born": "not this one"}', 0, True),
        ('{"host": "HERE", "pid": 999999999, "born": "1"}', 0, True),
        ("", 3600, True),
        ("", 0, False),
    ],
)
def test_stale_locks_are_taken_over(tmp_path, holder, age, taken, capsys):
    lock = tmp_path / "lock"
    lock.write_text(holder.replace("HERE", workdirs.socket.gethostname()))
    os.utime(lock, (time.time() - age,) * 2)
    if taken:
        with workdirs.claim(tmp_path):
            assert str(os.getpid()) in lock.read_text()
        assert "stale and taken over" in capsys.readouterr().out
    else:
        with pytest.raises(ConfigError, match="in use"):
            with workdirs.claim(tmp_path):
                pass
        assert lock.exists()
