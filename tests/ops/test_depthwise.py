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


def draw(*shape):
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


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
    x, kernel = draw(2, *size, 5), draw(*kernel_size, 1, 5)
    forms = (
        lambda a, b: depthwise_conv2d(a, b, stride=stride, dilation=dilation, padding=padding),
        lambda a, b: reference(a, b, stride, dilation, padding),
    )
    dy = draw(*jax.eval_shape(forms[1], x, kernel).shape)

    @jax.jit
    def both(x, kernel, dy):
        pairs = [jax.vjp(form, x, kernel) for form in forms]
        return [(value, *vjp(dy)) for value, vjp in pairs]

    for mine, other in zip(*both(x, kernel, dy), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-4)


def test_gradients_inside_a_scan_equal_the_unrolled_ones():
    x, kernels = draw(1, 9, 8, 6), draw(3, 3, 3, 1, 6) / 3

    def scanned(kernels):
        return lax.scan(lambda h, k: (jnp.tanh(depthwise_conv2d(h, k)), None), x, kernels)[0].sum()

    def unrolled(kernels):
        h = x
        for k in kernels:
            h = jnp.tanh(reference(h, k, 1, 1, None))
        return h.sum()

    np.testing.assert_allclose(*jax.jit(lambda kernels: (jax.grad(scanned)(kernels), jax.grad(unrolled)(kernels)))(kernels), atol=1e-4)


@pytest.mark.parametrize("kernel_size, stride, convolutions", [(3, 1, 1), (3, 2, 3), (7, 1, 3)])
def test_a_tpu_is_given_shifts_for_few_taps_and_a_grouped_kernel_gradient(kernel_size, stride, convolutions):
    loss = lambda x, kernel: jnp.sin(depthwise_conv2d(x, kernel, stride=stride)).sum()
    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(draw(2, 12, 16, 5), draw(kernel_size, kernel_size, 1, 5))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.convolution") == text.count("group_count = 5") == convolutions


def test_half_precision_sums_in_float32():
    x, kernel = draw(1, 40, 40, 3).astype(jnp.bfloat16), draw(7, 7, 1, 3).astype(jnp.bfloat16)
    loss = lambda x, kernel: jnp.sum(depthwise_conv2d(x, kernel) * 0.1)

    @jax.jit
    def run(x, kernel):
        exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, 1, None)
        return depthwise_conv2d(x, kernel), jax.grad(loss, argnums=1)(x, kernel), exact

    y, gradient, exact = run(x, kernel)
    assert y.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, rtol=0.005, atol=1e-6)
