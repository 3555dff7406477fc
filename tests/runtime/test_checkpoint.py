import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from segjax.errors import ConfigError, SegjaxError, WeightsError
from segjax.runtime import mesh as meshes
from segjax.runtime.checkpoint import Checkpoints
from segjax.runtime.state import TrainState


def state_at(step, size=(256, 64)):
    variables = {"params": {"w": jnp.full(size, float(step)), "b": jnp.zeros(3)}, "batch_stats": {"mean": jnp.ones(3)}}
    state = TrainState.create(jax.random.key(7), variables, optax.adam(1e-3), ema=True)
    return state.replace(step=jnp.int32(step))


def abstract(state, mesh=None):
    mesh = mesh or meshes.make_mesh(1)
    return meshes.with_shardings(state, meshes.shard_rules(state, mesh, min_size=1))


def equal(a, b):
    raw = lambda tree: [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)]
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in zip(raw(a), raw(b), strict=True))


@pytest.fixture
def two(tmp_path):
    """Steps 1 and 2, committed."""
    saves = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        saves.save(step, state_at(step))
    saves.wait()
    return saves


def falls_back(saves, capsys, reason):
    state, step = Checkpoints(saves.directory).restore(abstract(state_at(0)))
    assert step == 1 and equal(state, state_at(1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "checkpoint 2 is damaged and skipped" in lines[0] and reason in lines[0], lines
    with pytest.raises(WeightsError):
        Checkpoints(saves.directory).restore(abstract(state_at(0)), step=2)


def largest(saves, step):
    return max((p for p in (saves.directory / str(step) / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_newest_comes_back_on_any_mesh(two):
    for mesh in (meshes.make_mesh(1), meshes.make_mesh(fsdp=4)):
        target = abstract(state_at(0), mesh)
        state, step = two.restore(target)
        assert step == 2 and equal(state, state_at(2))
        assert state.params["w"].sharding == target.params["w"].sharding
    assert two.restore(abstract(state_at(0)), step=1)[1] == 1


def test_sharded_state_comes_back_on_one_device(tmp_path):
    sharded = jax.device_put(state_at(3), meshes.shard_rules(state_at(3), meshes.make_mesh(fsdp=8), min_size=1))
    saves = Checkpoints(tmp_path)
    saves.save(3, sharded)
    assert equal(saves.restore(abstract(state_at(0)))[0], state_at(3))


def test_donating_right_after_save_is_safe(tmp_path):
    """The values saved are those at the call, although the next steps overwrite the buffers while the files are written."""
    saves = Checkpoints(tmp_path, keep=20)
    bump = jax.jit(lambda s: s.replace(params=jax.tree.map(lambda x: x + 1, s.params)), donate_argnums=0)
    state = bump(state_at(0, (512, 512)))
    for step in range(1, 6):
        saves.save(step, state)
        for _ in range(10):
            state = bump(state)
    saves.wait()
    for step in range(1, 6):
        restored, _ = saves.restore(abstract(state), step=step)
        assert (np.asarray(restored.params["w"]) == 1 + 10 * (step - 1)).all()


def test_keep_and_same_step_twice(tmp_path):
    saves = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 5, 5):
        saves.save(step, state_at(step))
    saves.wait()
    assert saves.steps() == [2, 5]
    with pytest.raises(ConfigError):
        Checkpoints(tmp_path, keep=0)


def test_flipped_bit(two, capsys):
    path = largest(two, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    falls_back(two, capsys, "was changed after it was written")


def test_truncated_data(two, capsys):
    os.truncate(largest(two, 2), largest(two, 2).stat().st_size // 2)
    falls_back(two, capsys, "bytes, written were")


def test_missing_data_file(two, capsys):
    largest(two, 2).unlink()
    falls_back(two, capsys, "is missing")


def test_missing_manifest(two, capsys):
    (two.directory / "2" / "manifest.json").unlink()
    falls_back(two, capsys, "manifest.json is missing")


@pytest.mark.parametrize("damage", ["{", "{}", "edited"])
def test_garbled_manifest(two, capsys, damage):
    path = two.directory / "2" / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3') if damage == "edited" else damage)
    falls_back(two, capsys, "was changed" if damage == "edited" else "cannot be read")


def test_the_run_goes_on_after_a_fall_back(two, capsys):
    largest(two, 2).unlink()
    saves = Checkpoints(two.directory, keep=1)
    saves.restore(abstract(state_at(0)))
    saves.save(2, state_at(2))
    saves.wait()
    assert saves.steps() == [2] and equal(saves.restore(abstract(state_at(0)))[0], state_at(2))


def test_too_little_memory_is_not_damage(two, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", full)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        two.restore(abstract(state_at(0)))
    monkeypatch.undo()
    assert two.restore(abstract(state_at(0)))[1] == 2


def test_all_damaged_or_none(two, tmp_path):
    for step in (1, 2):
        largest(two, step).unlink()
    with pytest.raises(WeightsError, match=r"2 damaged \(2, 1\).*start afresh"):
        two.restore(abstract(state_at(0)))
    with pytest.raises(WeightsError, match="none"):
        Checkpoints(tmp_path / "nothing").restore(abstract(state_at(0)))


def test_left_over_tmp_is_ignored_and_swept(two):
    left = two.directory / "3.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    assert two.steps() == [1, 2]
    two.sweep()
    assert not left.exists() and two.steps() == [1, 2]


def test_other_network_is_refused_without_falling_back(two):
    for other in (state_at(0, (256, 32)), state_at(0).replace(params={"w": jnp.zeros((256, 64), jnp.bfloat16), "b": jnp.zeros(3)})):
        with pytest.raises(WeightsError, match="params/w is"):
            two.restore(abstract(other))
    with pytest.raises(WeightsError, match="ema_params/b is not in this run"):
        two.restore(abstract(state_at(0).replace(ema_params=None)))


def test_read_only_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SegjaxError, match="step 1 could not be written.*choose another"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, state_at(1))


FULL = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from segjax.errors import SegjaxError
from segjax.runtime.checkpoint import Checkpoints
saves = Checkpoints(sys.argv[1])
saves.save(1, {"w": jnp.ones(10)})
saves.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)), jnp.float32)
try:
    saves.save(2, {"w": noise})
    saves.wait()
except SegjaxError as error:
    print("told:", error)
"""


def test_full_disk_leaves_the_old_steps(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=environment)
    assert "told: the checkpoint of step 2 could not be written" in found.stdout, found.stderr
    assert "saved steps that stay: 1" in found.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    Checkpoints(tmp_path).verify(1)


def test_manifest_tells_every_array(two):
    manifest = json.loads((two.directory / "2" / "manifest.json").read_text())["manifest"]
    assert manifest["leaves"]["params/w"] == [[256, 64], "float32"] and manifest["leaves"]["key"] == [[], "key<fry>"]
