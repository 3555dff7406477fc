import jax
import jax.numpy as jnp
import pytest

from segjax.errors import SegjaxError
from segjax.runtime import compile as compiling
from segjax.runtime import mesh as meshes
from segjax.typing import Method


def method(step):
    return Method(lambda key, batch: {"w": jnp.zeros((4, 6))}, step, lambda *_: None)


def specs(mesh):
    state = jax.eval_shape(lambda: {"w": jnp.zeros((4, 6))})
    state = meshes.with_shardings(state, meshes.shard_rules(state, mesh))
    return state, (), {"x": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=meshes.batch_sharding(mesh))}


def test_report_is_printed_before_anything_runs(capsys):
    mesh = meshes.make_mesh()
    good = method(lambda state, frozen, batch: (state, {"loss": (batch["x"] @ state["w"]).sum()}))
    compiled, report = compiling.compile_step(good, *specs(mesh), mesh)
    assert report.flops == 2 * 8 * 4 * 6 and report.devices == 8
    assert report.argument_bytes >= 4 * (24 + 4) and report.temp_bytes is not None and report.peak_bytes > 0
    assert report.trace_seconds > 0 and report.compile_seconds > 0
    text = capsys.readouterr().out
    assert "GFLOP" in text and "temporary" in text and "compiled in" in text and "8 devices" in text
    state, metrics = compiled(
        jax.device_put({"w": jnp.ones((4, 6))}, meshes.replicated(mesh)), (), meshes.put_batch({"x": jax.numpy.ones((8, 4))}, mesh)
    )
    assert float(metrics["loss"]) == 8 * 6 * 4


def test_state_is_donated():
    mesh = meshes.make_mesh(1)
    compiled, report = compiling.compile_step(method(lambda s, f, b: (jax.tree.map(lambda x: x + 1, s), {})), *specs(mesh), mesh)
    state = jax.device_put({"w": jnp.ones((4, 6))}, meshes.replicated(mesh))
    compiled(state, (), meshes.put_batch({"x": jnp.ones((8, 4))}, mesh))
    assert state["w"].is_deleted() and report.alias_bytes == 96


@pytest.mark.parametrize("change", [lambda s: {"w": s["w"].astype(jnp.bfloat16)}, lambda s: {"w": s["w"], "more": s["w"]}])
def test_a_step_that_changes_its_state_is_named(change):
    mesh = meshes.make_mesh(1)
    with pytest.raises(SegjaxError, match=r"turns state\.(w from .*bfloat16|more from absent)"):
        compiling.compile_step(method(lambda s, f, b: (change(s), {})), *specs(mesh), mesh)


def test_flops_of_convolutions_loops_and_branches():
    count = lambda f, *shapes: compiling.count_flops(jax.make_jaxpr(f)(*[jnp.zeros(s) for s in shapes]).jaxpr)
    convolve = lambda x, k, **kw: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **kw)
    forward = 2 * (2 * 8 * 8 * 7) * (3 * 3 * 5)
    assert count(convolve, (2, 8, 8, 5), (3, 3, 5, 7)) == forward
    assert count(lambda x, k: convolve(x, k, feature_group_count=5), (2, 8, 8, 5), (3, 3, 1, 5)) == 2 * (2 * 8 * 8 * 5) * 9
    of_kernel = jax.grad(lambda k, x: convolve(x, k, feature_group_count=5).sum())
    assert count(of_kernel, (3, 3, 1, 5), (2, 8, 8, 5)) == 2 * (2 * 8 * 8 * 5) * 9
    both = count(jax.value_and_grad(lambda x, k: jnp.square(convolve(x, k)).sum(), argnums=(0, 1)), (2, 8, 8, 5), (3, 3, 5, 7))
    assert 2.9 * forward < both < 3.1 * forward
    alone = count(jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1)), (2, 8, 8, 5), (3, 3, 5, 7))
    assert 1.9 * forward < alone < 2.1 * forward  # nothing reads what the forward pass gives
    assert count(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0], (4, 4)) == 5 * 2 * 4**3
    assert count(lambda x: jax.jit(lambda y: jax.lax.cond(y.sum() > 0, lambda: y @ y @ y, lambda: y))(x), (4, 4)) == 2 * 2 * 4**3


def test_out_of_memory_names_what_lowers_it():
    with pytest.raises(SegjaxError, match="out of device memory.*Lower batch_size.*mesh.fsdp"):
        with compiling.out_of_memory_told():
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 bytes.")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        with compiling.out_of_memory_told():
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.fixture
def cache_setting():
    before = jax.config.jax_compilation_cache_dir
    yield before
    jax.config.update("jax_compilation_cache_dir", before)


def test_cache_folder(tmp_path, monkeypatch, capsys, cache_setting):
    monkeypatch.delenv("SEGJAX_CACHE", raising=False)
    assert str(compiling.enable_cache()) == cache_setting  # what is set stays
    monkeypatch.setenv("SEGJAX_CACHE", str(tmp_path / "a"))
    assert compiling.enable_cache() == tmp_path / "a" and jax.config.jax_compilation_cache_dir == str(tmp_path / "a")
    assert compiling.enable_cache(tmp_path / "b") == tmp_path / "b"
    monkeypatch.setenv("SEGJAX_CACHE", "")
    assert compiling.enable_cache() is None
    (tmp_path / "file").write_text("")
    assert compiling.enable_cache(tmp_path / "file" / "c") is None
    assert "warning: no compile cache" in capsys.readouterr().out
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "b")
