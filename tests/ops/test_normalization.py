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


def draw(rng, *shape):
    return rng.normal(1, 0.5, shape).astype(np.float32)


def with_gradients(f, weight):
    """One program of `x, scale, bias`: what `f` gives, and the gradients of a weighted sum of its first result's sines."""

    def loss(*a):
        y = f(*a)
        return jnp.sum(weight * jnp.sin(y[0])), y

    return jax.jit(lambda *a: jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*a))


def test_values_and_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(1.5, 2.0, (3, 6, 5, 4)).astype(np.float32)
    scale, bias, weight = draw(rng, 4), draw(rng, 4), draw(rng, *x.shape)
    (ours, got), (theirs, expected) = (with_gradients(lambda *a, f=f: f(*a, 1e-3), weight)(x, scale, bias) for f in (batch_norm, plain))
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.squeeze(mine, 0) if mine.ndim == 2 else mine, other, atol=2e-5)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_views_are_normalised_by_themselves():
    rng = np.random.default_rng(1)
    x = (rng.normal(1.5, 2.0, (2, 3, 6, 5, 4)) * np.arange(1, 4)[:, None, None, None]).astype(np.float32)  # [B,views,...]
    scale, bias, weight = draw(rng, 4), draw(rng, 4), draw(rng, *x.shape)

    def apart(x, scale, bias):
        each = zip(*(plain(x[:, view], scale, bias, 1e-3) for view in range(3)), strict=True)
        return [jnp.stack(parts, 1 if parts[0].ndim == 4 else 0) for parts in each]

    def together(x, scale, bias):
        y, *moments = batch_norm(x.reshape(6, 6, 5, 4), scale, bias, 1e-3, 3)
        return y.reshape(x.shape), *moments

    (ours, got), (theirs, expected) = (with_gradients(f, weight)(x, scale, bias) for f in (together, apart))
    for mine, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.reshape(mine, other.shape), other, atol=2e-5)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_constant_channel_and_bfloat16_stay_finite():
    x = np.ones((2, 4, 4, 3), jnp.bfloat16)
    x[..., 1] = np.arange(32).reshape(2, 4, 4)

    @jax.jit
    def run(x):
        norm = lambda x: batch_norm(x, jnp.ones(3), jnp.zeros(3), 1e-5)
        return norm(x), jax.grad(lambda x: norm(x)[0].astype(jnp.float32).sum())(x)

    (y, mean, var), gradient = run(x)
    assert y.dtype == jnp.bfloat16 and mean.dtype == var.dtype == jnp.float32 and float(np.asarray(var)[0, 0]) == 0.0
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
    x = rng.normal(40.0, 2.0, (3, 5, 4, 6)).astype(np.float32)  # a mean far from zero: one-pass variances lose it
    scale, bias, weight = draw(rng, 6), draw(rng, 6), draw(rng, *x.shape)
    (mine, got), (other, expected) = (with_gradients(lambda *a, f=f: (f(*a, 1e-5),), weight)(x, scale, bias) for f in (ours, theirs))
    np.testing.assert_allclose(got[0], expected[0], atol=2e-5)
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    half = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    assert jax.eval_shape(lambda *a: ours(*a, 1e-5), half, scale, bias).dtype == jnp.bfloat16
