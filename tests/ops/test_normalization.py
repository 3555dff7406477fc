"""The normalisations and their own gradients against autodiff of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.normalization import batch_norm, group_norm, layer_norm


def plain(x, scale, bias, epsilon):
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def test_values_and_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.5, 2.0, (3, 6, 5, 4)), jnp.float32)
    scale, bias, weight = (jnp.asarray(rng.normal(1, 0.5, shape), jnp.float32) for shape in ((4,), (4,), x.shape))
    for mine, theirs in zip(batch_norm(x, scale, bias, 1e-3), plain(x, scale, bias, 1e-3), strict=True):
        np.testing.assert_allclose(jnp.squeeze(mine, 0) if mine.ndim == 2 else mine, theirs, atol=2e-5)
    loss = lambda f: lambda *a: jnp.sum(weight * jnp.sin(f(*a, 1e-3)[0]))
    ours, theirs = (jax.grad(loss(f), argnums=(0, 1, 2))(x, scale, bias) for f in (batch_norm, plain))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_views_are_normalised_by_themselves():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(1.5, 2.0, (2, 3, 6, 5, 4)) * np.arange(1, 4)[:, None, None, None], jnp.float32)  # [B,views,...]
    scale, bias, weight = (jnp.asarray(rng.normal(1, 0.5, shape), jnp.float32) for shape in ((4,), (4,), x.shape))
    apart = lambda x, scale, bias: [plain(x[:, view], scale, bias, 1e-3) for view in range(3)]
    for got, expected in zip(
        batch_norm(x.reshape(6, 6, 5, 4), scale, bias, 1e-3, 3), zip(*apart(x, scale, bias), strict=True), strict=True
    ):
        expected = jnp.stack(expected, 1 if expected[0].ndim == 4 else 0)
        np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=2e-5)

    def loss(x, scale, bias):
        return jnp.sum(weight * jnp.sin(batch_norm(x.reshape(6, 6, 5, 4), scale, bias, 1e-3, 3)[0].reshape(x.shape)))

    plainly = lambda *a: jnp.sum(weight * jnp.sin(jnp.stack([view[0] for view in apart(*a)], 1)))
    for mine, other in zip(*(jax.grad(f, argnums=(0, 1, 2))(x, scale, bias) for f in (loss, plainly)), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_constant_channel_and_bfloat16_stay_finite():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16).at[..., 1].set(jnp.arange(32, dtype=jnp.bfloat16).reshape(2, 4, 4))
    y, mean, var = batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)
    assert y.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32 and float(var[0, 0]) == 0.0
    gradient = jax.grad(lambda x: batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)[0].astype(jnp.float32).sum())(x)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def plain_layer(x, scale, bias, epsilon):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + epsilon) * scale + bias


def plain_group(x, scale, bias, epsilon, groups=2):
    parts = jnp.split(x, groups, -1)
    axes = tuple(range(1, x.ndim))
    normal = [(p - p.mean(axes, keepdims=True)) / jnp.sqrt(p.var(axes, keepdims=True) + epsilon) for p in parts]
    return jnp.concatenate(normal, -1) * scale + bias


@pytest.mark.parametrize(("ours", "theirs"), [(layer_norm, plain_layer), (lambda *a: group_norm(*a, groups=2), plain_group)])
def test_layer_and_group_norm_equal_their_formulas(ours, theirs):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(40.0, 2.0, (3, 5, 4, 6)), jnp.float32)  # a mean far from zero: one-pass variances lose it
    scale, bias, weight = (jnp.asarray(rng.normal(1, 0.5, shape), jnp.float32) for shape in ((6,), (6,), x.shape))
    loss = lambda f: lambda *a: jnp.sum(weight * jnp.sin(f(*a, 1e-5)))
    np.testing.assert_allclose(ours(x, scale, bias, 1e-5), theirs(x, scale, bias, 1e-5), atol=2e-5)
    gradients = (jax.grad(loss(f), argnums=(0, 1, 2))(x, scale, bias) for f in (ours, theirs))
    for mine, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)
    assert ours(x.astype(jnp.bfloat16), scale, bias, 1e-5).dtype == jnp.bfloat16
