"""Attention against a float64 recomputation: masks, causality, scale, gradients, and the form that other platforms take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import attention as ops


def _inputs(n=5, m=7, heads=2, d=8, e=8):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((3, length, heads, size)).astype(np.float32) for length, size in ((n, d), (m, d), (m, e)))


def _expected(query, key, value, scale, mask):
    logits = np.einsum("bnhd,bmhd->bhnm", query.astype(np.float64), key) * scale
    logits = np.where(mask, logits, -np.inf)
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhnm,bmhe->bnhe", weight / weight.sum(-1, keepdims=True), value)


@pytest.mark.parametrize(("scale", "masked", "causal"), [(None, False, False), (0.3, True, False), (None, False, True), (None, True, True)])
def test_equals_the_formula(scale, masked, causal):
    query, key, value = _inputs(n=7)
    mask = np.random.default_rng(1).random((3, 1, 7, 7)) < 0.7
    mask[..., 0] = True  # every row may attend somewhere
    allowed = mask if masked else np.ones((1, 1, 7, 7), bool)
    allowed = allowed & np.tril(np.ones((7, 7), bool)) if causal else allowed
    got = jax.jit(lambda *a: ops.attention(*a, scale=scale, mask=jnp.asarray(mask) if masked else None, causal=causal))(query, key, value)
    np.testing.assert_allclose(got, _expected(query, key, value, scale or 8**-0.5, allowed), atol=1e-6)


def test_values_of_another_width_and_other_lengths():
    query, key, value = _inputs(e=3)
    got = jax.jit(ops.attention)(query, key, value)
    assert got.shape == (3, 5, 2, 3)
    np.testing.assert_allclose(got, _expected(query, key, value, 8**-0.5, True), atol=1e-6)


def test_both_forms_agree_with_their_gradients():
    arrays = _inputs()
    weight = np.random.default_rng(2).standard_normal((3, 5, 2, 8)).astype(np.float32)
    forms = [jax.value_and_grad(lambda a, f=f: jnp.sum(f(*a) * weight)) for f in (ops.attention, jax.nn.dot_product_attention)]
    ours, theirs = jax.jit(lambda a: [form(a) for form in forms])(arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)


def test_blocks_of_queries_agree_with_their_gradients(monkeypatch):
    """A TPU's form, run here: 24 queries, 8 at a time."""
    monkeypatch.setattr(ops.lax, "platform_dependent", lambda *arguments, **forms: forms["tpu"](*arguments))
    monkeypatch.setattr(ops, "_AT_ONCE", 0)
    monkeypatch.setattr(ops, "_KEYS", 0)
    monkeypatch.setattr(ops, "_BLOCK", 4 * 3 * 2 * 7 * 11)
    arrays, weight = _inputs(n=24), np.random.default_rng(2).standard_normal((3, 24, 2, 8)).astype(np.float32)
    assert ops._rows_at_a_time(*arrays[:2], None) == 8
    forms = [jax.value_and_grad(lambda a, f=f: jnp.sum(f(*a) * weight)) for f in (ops.attention, jax.nn.dot_product_attention)]
    ours, theirs = jax.jit(lambda a: [form(a) for form in forms])(arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), ours, theirs)


@pytest.mark.parametrize(
    ("b", "n", "m", "heads", "rows"), [(1, 4096, 4096, 8, 256), (1, 2304, 2304, 8, 384), (20, 16384, 256, 1, 0), (1, 4099, 9999, 8, 0)]
)
def test_blocks_where_logits_would_leave_a_tpus_vector_memory(b, n, m, heads, rows):
    """Stable Diffusion's largest map at 512 and at 384 pixels; few keys, as in MiT; a number of queries that nothing divides."""
    query, key = (jax.ShapeDtypeStruct((b, length, heads, 40), jnp.bfloat16) for length in (n, m))
    assert ops._rows_at_a_time(query, key, None) == rows
    loops = jax.jit(ops.attention).trace(query, key, key).lower(lowering_platforms=("tpu",)).as_text().count("stablehlo.while")
    assert loops == (rows > 0)


@pytest.mark.parametrize("form", ["cpu", "default"])
@pytest.mark.parametrize(("masked", "causal"), [(True, False), (False, True), (True, True)])
def test_gradients_under_a_mask(form, masked, causal, monkeypatch):
    """Of the CPU's form and of the others', run here, against autodiff of the formula; the last query may attend nowhere under the mask."""
    monkeypatch.setattr(ops.lax, "platform_dependent", lambda *arguments, **forms: forms[form](*arguments))
    query, key, value = _inputs(n=7)
    mask = np.random.default_rng(1).random((3, 1, 7, 7)) < 0.6
    mask[..., 0], mask[:, :, -1] = True, False
    allowed = (mask if masked else True) & (np.tril(np.ones((7, 7), bool)) if causal else True)

    def formula(query, key, value):
        logits = jnp.where(allowed, jnp.einsum("bnhd,bmhd->bhnm", query, key) * 0.3, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bhnm,bmhe->bnhe", jax.nn.softmax(logits), value)

    ours = lambda *a: ops.attention(*a, scale=0.3, mask=jnp.asarray(mask) if masked else None, causal=causal)
    weight = np.random.default_rng(2).standard_normal((3, 7, 2, 8)).astype(np.float32)
    slopes = [jax.grad(lambda a, f=f: jnp.sum(f(*a) * weight)) for f in (ours, formula)]
    grads = jax.jit(lambda a: [slope(a) for slope in slopes])((query, key, value))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *grads)


def test_the_gradient_keeps_nothing_of_all_pairs():
    """Or every block of a scanned network would store arrays [N,M], of each platform's form."""
    arrays = [jax.ShapeDtypeStruct((1, 64, 2, 8), jnp.float32)] * 3
    kept = jax.tree.leaves(jax.eval_shape(lambda *a: jax.vjp(ops.attention, *a)[1], *arrays))
    assert kept and all(np.prod(leaf.shape) <= 64 * 2 * 8 for leaf in kept)


def test_a_row_that_may_attend_nowhere_stays_finite():
    query, key, value = _inputs()
    got = jax.jit(ops.attention)(query, key, value, mask=np.zeros((1, 1, 5, 7), bool))
    np.testing.assert_allclose(got, np.broadcast_to(value.mean(1, keepdims=True), got.shape), atol=1e-6)


def test_half_precision_keeps_its_type_and_a_float32_softmax():
    query, key, value = _inputs()
    slope = jax.grad(lambda a: jnp.square(ops.attention(*a).astype(jnp.float32)).sum())
    low, high = [[x.astype(kind) for x in (query, key, value)] for kind in (jnp.bfloat16, np.float32)]
    half, *grads = jax.device_get(jax.jit(lambda low, high: (ops.attention(*low), slope(low), slope(high)))(low, high))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), _expected(query, key, value, 8**-0.5, True), atol=3e-2)
    for low, high in zip(*grads, strict=True):
        assert low.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(low, np.float32), high, atol=3e-2 * float(np.abs(high).max()))
