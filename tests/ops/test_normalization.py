"""Batch normalisation's own gradient against autodiff of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.normalization import batch_norm


def plain(x, scale, bias, epsilon):
    mean = x.mean((0, 1, 2))
    var = jnp.square(x - mean).mean((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + epsilon) * scale + bias, mean, var


def test_values_and_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(1.5, 2.0, (3, 6, 5, 4)), jnp.float32)
    scale, bias, weight = (jnp.asarray(rng.normal(1, 0.5, shape), jnp.float32) for shape in ((4,), (4,), x.shape))
    for mine, theirs in zip(batch_norm(x, scale, bias, 1e-3), plain(x, scale, bias, 1e-3), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    loss = lambda f: lambda *a: jnp.sum(weight * jnp.sin(f(*a, 1e-3)[0]))
    ours, theirs = (jax.grad(loss(f), argnums=(0, 1, 2))(x, scale, bias) for f in (batch_norm, plain))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_constant_channel_and_bfloat16_stay_finite():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16).at[..., 1].set(jnp.arange(32, dtype=jnp.bfloat16).reshape(2, 4, 4))
    y, mean, var = batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)
    assert y.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32 and float(var[0]) == 0.0
    gradient = jax.grad(lambda x: batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)[0].astype(jnp.float32).sum())(x)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
