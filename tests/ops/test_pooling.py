"""Pools and unpools against numpy, ties and odd sizes included; gradients reach the first maximum alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.pooling import average_pool, max_pool, max_pool_2x2_with_index, max_unpool_2x2


def test_indices_name_the_first_maximum_and_unpool_restores_it():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, size=(2, 7, 9, 4)).astype(np.float32)  # few values: many ties

    @jax.jit
    def run(x):
        pooled, index = max_pool_2x2_with_index(x)
        back = max_unpool_2x2(pooled, index, (7, 9))
        gradient = jax.grad(lambda x: (max_pool_2x2_with_index(x)[0] * pooled).sum())(x)
        return pooled, index, back, max_pool_2x2_with_index(back)[0], gradient

    pooled, index, back, again, gradient = jax.device_get(run(x))
    windows = x[:, :6, :8].reshape(2, 3, 2, 4, 2, 4).transpose(0, 1, 3, 5, 2, 4).reshape(2, 3, 4, 4, 4)
    np.testing.assert_array_equal(pooled, windows.max(-1))
    np.testing.assert_array_equal(index, windows.argmax(-1))
    assert back.shape == x.shape and back[:, 6].sum() == 0 and back[:, :, 8].sum() == 0
    np.testing.assert_array_equal(again, pooled)
    np.testing.assert_array_equal(gradient, back)


def naive_pool(x, window, stride, padding, ceil_mode):
    b, h, w, c = x.shape
    out = []
    for size in (h, w):
        n = (-(-(size + 2 * padding - window) // stride) if ceil_mode else (size + 2 * padding - window) // stride) + 1
        out.append(n - 1 if ceil_mode and (n - 1) * stride >= size + padding else n)
    y = np.full((b, *out, c), -np.inf, np.float32)
    for i in range(out[0]):
        for j in range(out[1]):
            rows = slice(max(i * stride - padding, 0), max(i * stride - padding + window, 0))
            columns = slice(max(j * stride - padding, 0), max(j * stride - padding + window, 0))
            y[:, i, j] = x[:, rows, columns].max((1, 2))
    return y


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("shape, window, padding", [((8, 9), 3, 1), ((7, 12), 3, 1), ((6, 7), 2, 0)])
def test_max_pool_sizes_and_values(shape, window, padding, ceil_mode):
    x = np.random.default_rng(1).normal(size=(2, *shape, 3)).astype(np.float32)
    ours = jax.jit(functools.partial(max_pool, window=window, padding=padding, ceil_mode=ceil_mode))(x)
    np.testing.assert_array_equal(ours, naive_pool(x, window, 2, padding, ceil_mode))


def test_max_pool_gradient_goes_to_the_first_maximum():
    x = np.random.default_rng(2).integers(0, 3, size=(1, 6, 6, 2)).astype(np.float32)
    distinct = x + np.arange(x.size, dtype=np.float32).reshape(x.shape) * np.float32(1e-3)
    window = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    @jax.jit
    def run(x, distinct):
        squares = [jax.grad(lambda x, f=f: jnp.square(f(x)).sum())(distinct) for f in (max_pool, window)]
        return max_pool(x), jax.grad(lambda x: max_pool(x).sum())(x), *squares

    pooled, gradient, ours, theirs = jax.device_get(run(x, distinct))
    assert gradient.sum() == pooled.size
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_average_pool_drops_what_is_left_over():
    x = np.arange(2 * 5 * 7 * 3, dtype=np.float32).reshape(2, 5, 7, 3)
    expected = x[:, :4, :6].reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(jax.jit(average_pool, static_argnums=1)(x, 2), expected, rtol=1e-6)
    np.testing.assert_array_equal(average_pool(x, 1), x)
