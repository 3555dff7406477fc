import functools
import importlib.util
import itertools
import json
import pathlib
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import ConfigError, DataError, SegjaxError, WeightsError
from segjax.runtime import meter
from segjax.runtime.loop import train
from segjax.runtime.mesh import make_mesh
from segjax.runtime.optim import make_optimizer

_spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [row["loss/mse"] for row in rows(workdir)]


def run(workdir, steps=10, method=None, **kwargs):
    kwargs = {"batches": toy.batches, "mesh": make_mesh(1), "log_every": 1, "checkpoint_every": 100} | kwargs
    return train(method or toy.make(), steps=steps, workdir=workdir, **kwargs)


def test_eight_devices_equal_one(tmp_path):
    # 8192: large enough for the fsdp rule
    method = toy.make(size=8192, optimizer=make_optimizer(name="adam", lr=1e-4, schedule="constant"))
    one = run(tmp_path / "one", method=method)
    for name, mesh in {"data": make_mesh(8), "fsdp": make_mesh(2, 4)}.items():
        many = run(tmp_path / name, method=method, mesh=mesh)
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-5)
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        split = many.params["w"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
        assert split == (name == "fsdp") and many.opt_state[2].mu["w"].sharding == many.params["w"].sharding
    assert losses(tmp_path / "one")[-1] < losses(tmp_path / "one")[0]


def test_what_a_run_leaves_and_says(tmp_path, capsys):
    seen = []
    state = run(tmp_path, 10, log_every=4, evaluate=lambda s, step: seen.append(step) or {"eval/toy": step}, evaluate_every=5)
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [4, 5, 8, 10, 10] and seen == [5, 10] and int(state.step) == 10
    told = {"loss/mse", "noise", "images_per_s", "step_s", "data_wait", "host_idle", "goodput"}
    assert told <= found[0].keys() and found[1]["eval/toy"] == 5
    assert 0 <= found[2]["goodput"] <= 1 and found[2]["images_per_s"] == pytest.approx(16 / found[2]["step_s"])
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["mesh"] == {"data": 1, "fsdp": 1} and about["versions"]["jax"] == jax.__version__ and about["command"]
    assert not (tmp_path / "lock").exists()
    text = capsys.readouterr().out
    assert text.index("GFLOP") < text.index("step 4/10") and "done: steps 0 to 10" in text


def test_rows_are_means_of_their_window(tmp_path):
    run(tmp_path / "each", 8)
    run(tmp_path / "mean", 8, log_every=4)
    np.testing.assert_allclose(losses(tmp_path / "mean"), np.reshape(losses(tmp_path / "each"), (2, 4)).mean(1), rtol=1e-6)


def test_a_finished_run_is_returned_and_a_longer_one_goes_on(tmp_path, capsys):
    first = run(tmp_path, 5)
    assert toy.digest(run(tmp_path, 5)) == toy.digest(first)
    assert "GFLOP" not in capsys.readouterr().out.split("resumed from step 5")[1]
    longer = run(tmp_path, 9)
    assert toy.digest(longer) == toy.digest(run(tmp_path / "unbroken", 9))
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))


def test_a_save_of_one_device_goes_on_on_eight(tmp_path):
    run(tmp_path, 5)
    run(tmp_path, 10, mesh=make_mesh(4, 2))
    run(tmp_path / "unbroken", 10)
    np.testing.assert_allclose(losses(tmp_path), losses(tmp_path / "unbroken"), rtol=1e-5)


def test_falls_back_past_a_damaged_save(tmp_path, capsys):
    run(tmp_path, 6, checkpoint_every=2)
    (tmp_path / "checkpoints" / "6" / "manifest.json").unlink()
    assert toy.digest(run(tmp_path, 8)) == toy.digest(run(tmp_path / "unbroken", 8))
    assert "checkpoint 6 is damaged and skipped" in capsys.readouterr().out


def test_initial_variables_reach_student_and_teacher(tmp_path):
    given = {"params": {"w": np.full((3, 16), 2.0, np.float32), "v": np.zeros((16, 1), np.float32)}}
    still = toy.make(optimizer=optax.set_to_zero())
    state = run(tmp_path, 3, still, initial_variables=lambda: given, mesh=make_mesh(8))
    assert (np.asarray(state.params["w"]) == 2).all() and np.allclose(state.ema_params["w"], 2)
    given["params"]["w"] = given["params"]["w"][:, :5]
    with pytest.raises(WeightsError, match="w \\(3, 5\\) for \\(3, 16\\)"):
        run(tmp_path / "other", 3, initial_variables=lambda: given)


def test_nan_stops_after_its_row_and_is_never_saved(tmp_path):
    for log_every in (1, 50):
        place = tmp_path / str(log_every)
        with pytest.raises(SegjaxError, match="loss/mse is nan at step 6"):
            run(place, 20, toy.make(poison=6), checkpoint_every=3, log_every=log_every)
        assert rows(place)[-1]["step"] == 6 and rows(place)[-1]["loss/mse"] == "nan"
        assert sorted(p.name for p in (place / "checkpoints").iterdir()) == ["3"]


def test_nan_params_behind_a_finite_loss_are_not_saved(tmp_path):
    wild = optax.chain(optax.identity(), optax.stateless(lambda u, p: jax.tree.map(lambda x: x * jnp.nan, u)))
    with pytest.raises(SegjaxError, match="params are not finite after step 1"):
        run(tmp_path, 5, toy.make(optimizer=wild), checkpoint_every=1)
    run(tmp_path / "allowed", 2, toy.make(optimizer=wild), checkpoint_every=1, stop_on_nan=False)


def test_the_host_reads_a_step_late(tmp_path, monkeypatch):
    """No step's metrics are fetched before a later step was dispatched, and one transfer serves a window."""
    reads = []
    real = meter.Meter.read

    def read(self, count):
        newest = self.pending[-1][0] if self.pending else 0
        reads.append((newest, [step for step, _ in itertools.islice(self.pending, count)]))
        return real(self, count)

    monkeypatch.setattr(meter.Meter, "read", read)
    run(tmp_path, 10, log_every=4)
    assert [r for r in reads if r[1]] == [(5, [1, 2, 3, 4]), (9, [5, 6, 7, 8]), (10, [9, 10])]


def test_one_trace_and_one_compilation(tmp_path):
    traces = []
    method = toy.make()
    counted = method._replace(step=lambda *a: traces.append(1) or method.step(*a))
    run(tmp_path, 6, counted)
    assert len(traces) == 1


def test_batches_are_read_ahead_and_the_thread_ends(tmp_path):
    asked = []

    def counted(start):
        for batch in toy.batches(start):
            asked.append(1)
            yield batch

    run(tmp_path, 4, batches=counted)
    assert 4 <= len(asked) <= 7
    assert not [t for t in threading.enumerate() if t.name in ("prefetch", "lock") or t.name.startswith("checkpoint")]


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"batches": lambda s: iter(())}, DataError, "no batch for step 0"),
        ({"batches": lambda s: itertools.islice(toy.batches(s), 3)}, DataError, "ended at step 3 of 10"),
        ({"batches": functools.partial(toy.batches, rows=12), "mesh": make_mesh(8)}, ConfigError, "12 rows.*batch_size=8"),
        ({"log_every": 0}, ConfigError, "log_every=0"),
        ({"sharding_overrides": (("typo", jax.sharding.PartitionSpec()),)}, ConfigError, "matches no array"),
    ],
)
def test_errors(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, **kwargs)
    assert not (tmp_path / "lock").exists()


def test_an_error_in_the_data_thread_comes_out(tmp_path):
    def broken(start):
        yield from itertools.islice(toy.batches(start), 2)
        raise DataError("0007.png is cut off")

    with pytest.raises(DataError, match="0007.png is cut off"):
        run(tmp_path, batches=broken)


def test_out_of_memory_is_told(tmp_path):
    method = toy.make()
    huge = method._replace(init=lambda key, batch: method.init(key, batch).replace(batch_stats={"x": jnp.zeros((2**24, 2**22))}))
    with pytest.raises(SegjaxError, match="out of device memory.*Lower batch_size"):
        run(tmp_path, method=huge)


def test_unwritable_workdir_fails_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", "/proc/segjax"):
        with pytest.raises(ConfigError, match="cannot be written.*choose another --workdir"):
            train(None, batches=None, steps=1, workdir=place)


def test_a_slow_save_does_not_hold_the_steps(tmp_path, monkeypatch):
    from segjax.runtime.checkpoint import Checkpoints

    commit = Checkpoints._commit
    monkeypatch.setattr(Checkpoints, "_commit", lambda *a: (time.sleep(1.0), commit(*a)))
    times = []

    def timed(start):
        for batch in toy.batches(start):
            times.append(time.monotonic())
            yield batch

    run(tmp_path, 30, batches=timed, checkpoint_every=10)
    assert times[19] - times[13] < 0.5  # the save of step 10 is still being written


def test_optimizer_pattern_errors_come_before_compilation(tmp_path, capsys):
    with pytest.raises(ConfigError, match="matches no parameter"):
        run(tmp_path, method=toy.make(optimizer=make_optimizer(lr=1.0, total_steps=5, multipliers=(("head", 10.0),))))
    assert "GFLOP" not in capsys.readouterr().out
