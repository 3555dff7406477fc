"""Both forms of the depthwise convolution against lax's grouped one, values and gradients, inside a loop too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.ops.conv import same_padding
from segjax.ops.depthwise import depthwise_conv2d


def reference(x, kernel, stride, dilation, padding):
    padding = same_padding(kernel.shape[:2], dilation) if padding is None else padding
    numbers = ("NHWC", "HWIO", "NHWC")
    rates = (dilation, dilation)
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, None, rates, numbers, feature_group_count=x.shape[-1])


CASES = [
    ((3, 3), 1, 1, None, (12, 37)),
    ((3, 3), 2, 1, None, (12, 37)),
    ((3, 3), 2, 1, ((0, 0), (0, 0)), (12, 38)),
    ((3, 3), 2, 1, None, (13, 9)),
    ((3, 3), 1, 6, None, (5, 9)),
    ((7, 7), 1, 1, None, (9, 40)),
    ((7, 7), 2, 1, None, (9, 8)),
    ((1, 5), 1, 1, ((0, 1), (3, 0)), (6, 7)),
    ((4, 2), 3, 1, ((1, 0), (0, 2)), (11, 8)),
]


@pytest.mark.parametrize("kernel_size, stride, dilation, padding, size", CASES)
def test_values_and_gradients_are_those_of_lax(kernel_size, stride, dilation, padding, size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *size, 5))
    kernel = jax.random.normal(keys[1], (*kernel_size, 1, 5))

    def both(function):
        def run(x, kernel, dy):
            y, vjp = jax.vjp(function, x, kernel)
            return y, *vjp(dy if dy.shape == y.shape else jnp.resize(dy, y.shape))

        return run

    dy = jax.random.normal(keys[2], (4096,))
    ours = jax.jit(both(lambda a, b: depthwise_conv2d(a, b, stride=stride, dilation=dilation, padding=padding)))(x, kernel, dy)
    theirs = both(lambda a, b: reference(a, b, stride, dilation, padding))(x, kernel, dy)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_gradients_inside_a_scan_equal_the_unrolled_ones():
    x = jax.random.normal(jax.random.key(0), (1, 9, 8, 6))
    kernels = jax.random.normal(jax.random.key(1), (3, 3, 3, 1, 6)) / 3

    def scanned(kernels):
        return lax.scan(lambda h, k: (jnp.tanh(depthwise_conv2d(h, k)), None), x, kernels)[0].sum()

    def unrolled(kernels):
        h = x
        for k in kernels:
            h = jnp.tanh(reference(h, k, 1, 1, None))
        return h.sum()

    np.testing.assert_allclose(jax.jit(jax.grad(scanned))(kernels), jax.grad(unrolled)(kernels), atol=1e-4)


def test_half_precision_sums_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 40, 40, 3), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 1, 3), jnp.bfloat16)
    loss = lambda x, kernel: jnp.sum(depthwise_conv2d(x, kernel) * 0.1)
    y, gradient = jax.jit(depthwise_conv2d)(x, kernel), jax.jit(jax.grad(loss, argnums=1))(x, kernel)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, 1, None)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.005, atol=1e-6)
