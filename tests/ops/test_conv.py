"""Every form of the convolution primitives against lax (itself torch's definition), values and gradients, inside a loop too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segjax.ops import conv, conv_columns
from segjax.ops.conv import atrous_sum, conv2d, conv_transpose2d, same_padding
from segjax.ops.conv_columns import columns_conv, columns_gradients


def reference(x, kernel, stride, dilation, padding):
    padding = same_padding(kernel.shape[:2], dilation) if padding is None else padding
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, None, (dilation, dilation), ("NHWC", "HWIO", "NHWC"))


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


CASES = [
    ((3, 3), 1, 1, None),
    ((3, 3), 1, 2, None),
    ((3, 3), 1, 16, None),
    ((5, 1), 1, 1, None),
    ((1, 5), 1, 1, None),
    ((1, 1), 1, 1, None),
    ((1, 1), 2, 1, None),
    ((2, 2), 2, 1, ((0, 0), (0, 0))),
    ((2, 2), 2, 3, ((0, 0), (0, 0))),
    ((3, 3), 2, 1, ((1, 1), (1, 1))),
    ((7, 7), 2, 1, None),
    ((7, 7), 4, 1, None),
    ((7, 8), 4, 1, ((0, 3), (5, 1))),
    ((5, 5), 2, 1, ((0, 0), (0, 0))),
    ((3, 2), 2, 2, ((2, 1), (0, 3))),
    ((4, 4), 3, 1, ((0, 1), (2, 0))),
]


@pytest.mark.parametrize("kernel_size, stride, dilation, padding", CASES)
def test_values_and_gradients_are_those_of_lax(kernel_size, stride, dilation, padding):
    x, kernel = draw(2, 12, 17, 5), draw(*kernel_size, 5, 4)
    forms = (
        lambda a, b: conv2d(a, b, stride=stride, dilation=dilation, padding=padding),
        lambda a, b: reference(a, b, stride, dilation, padding),
    )
    dy = draw(*jax.eval_shape(forms[1], x, kernel).shape, seed=1)

    @jax.jit
    def both(x, kernel, dy):
        pairs = [jax.vjp(form, x, kernel) for form in forms]
        return [(value, *vjp(dy)) for value, vjp in pairs]

    for mine, other, atol in zip(*both(x, kernel, dy), (1e-4, 3e-4, 3e-4), strict=True):
        np.testing.assert_allclose(mine, other, atol=atol)


COLUMNS = [
    ((3, 3), 1, ((1, 1), (1, 1))),
    ((3, 3), 16, ((16, 16), (16, 16))),
    ((5, 1), 2, ((4, 4), (0, 0))),
    ((1, 5), 1, ((0, 0), (2, 2))),
    ((3, 2), 2, ((2, 1), (0, 3))),
    ((4, 3), 1, ((0, 0), (5, 0))),
]


@pytest.mark.parametrize("wide", [1, 512])
@pytest.mark.parametrize("kernel_size, dilation, padding", COLUMNS)
def test_columns_as_the_batch_are_the_same_convolution(monkeypatch, kernel_size, dilation, padding, wide):
    """The form for TPUs, which no platform of the tests would choose, with both kernel gradients."""
    monkeypatch.setattr(conv_columns, "_WIDE", wide)
    x, kernel = draw(2, 12, 17, 5), draw(*kernel_size, 5, 4)
    plain = lambda a, b: reference(a, b, 1, dilation, padding)
    dy = draw(*jax.eval_shape(plain, x, kernel).shape, seed=1)

    @jax.jit
    def both(x, kernel, dy):
        value, vjp = jax.vjp(plain, x, kernel)
        mine = columns_conv(x, kernel, dilation, padding), *columns_gradients(x, kernel, dy, dilation=dilation, padding=padding)
        return mine, (value, *vjp(dy))

    for mine, other, atol in zip(*both(x, kernel, dy), (1e-4, 3e-4, 3e-4), strict=True):
        np.testing.assert_allclose(mine, other, atol=atol)


def test_columns_add_their_taps_in_float32():
    x, kernel = (jnp.asarray(draw(*shape), jnp.bfloat16) for shape in ((1, 6, 9, 64), (3, 3, 64, 4)))
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, 1, None)
    value = columns_conv(x, kernel, 1, ((1, 1), (1, 1)))
    assert value.dtype == jnp.bfloat16 and float((value == exact.astype(jnp.bfloat16)).mean()) > 0.99


def test_a_tpu_is_given_its_own_forms():
    """Lowered for a TPU: a convolution for each tap of a row, forward and back; products over images that stay images."""

    def loss(x, kernel, last):
        return conv2d(conv2d(x, kernel), last).sum()

    def lowered(platform, *shape):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(draw(*shape), draw(3, 3, 8, 6), draw(1, 1, 6, 4))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    tpu, cpu = lowered("tpu", 2, 12, 25, 8), lowered("cpu", 2, 12, 25, 8)
    assert tpu.count("stablehlo.convolution") == 3 + 3 + 1 and cpu.count("stablehlo.convolution") == 2
    for shape in ((8, 12, 24, 8), (2, 12, 23, 8)):  # images enough for a batch; too few columns
        assert lowered("tpu", *shape).count("stablehlo.convolution") == 3
    assert "contracting_dims = [0, 1, 2] x [0, 1, 2]" in tpu and "contracting_dims = [0, 1, 2] x [0, 1, 2]" not in cpu


@pytest.mark.parametrize("columns", [2, 9])
def test_the_kernel_gradient_of_a_product_in_both_forms(columns):
    x, dy = draw(2, 3, 5, 4), draw(2, 3, 5, columns, seed=1)
    expected = x.reshape(-1, 4).T @ dy.reshape(-1, columns)
    for form in (conv._sum_of_products, conv._product_of_rows):
        np.testing.assert_allclose(form(x, dy), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 31, 22), (1, 9, 40)])
def test_gradients_of_strided_patches_at_any_size(size):
    """Images that the stride divides or not, with rows that no output sees; both forms of the gradient."""
    loss = lambda f: lambda x, kernel, stride: jnp.square(f(x, kernel, stride)).sum()
    forms = [loss(lambda x, k, s: conv2d(x, k, stride=s)), loss(lambda x, k, s: reference(x, k, s, 1, None))]
    both = jax.jit(lambda x, kernel, stride: [jax.grad(f, (0, 1))(x, kernel, stride) for f in forms], static_argnums=2)
    for k, stride in ((7, 4), (3, 2)):
        ours, theirs = jax.device_get(both(draw(*size, 3), draw(k, k, 3, 4), stride))
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-5 * float(np.abs(other).max()))


def test_gradients_inside_a_scan_equal_the_unrolled_ones():
    x, kernels = draw(1, 9, 8, 6), draw(3, 3, 3, 6, 6) / 5

    def scanned(kernels):
        return lax.scan(lambda h, k: (jnp.tanh(conv2d(h, k, dilation=2)), None), x, kernels)[0].sum()

    def unrolled(kernels):
        h = x
        for k in kernels:
            h = jnp.tanh(reference(h, k, 1, 2, None))
        return h.sum()

    np.testing.assert_allclose(*jax.jit(lambda kernels: (jax.grad(scanned)(kernels), jax.grad(unrolled)(kernels)))(kernels), atol=1e-4)


@pytest.mark.parametrize("size, output", [(2, None), (3, None), (3, (11, 13)), (2, (12, 13))])
def test_transposed_convolution_puts_each_tap_where_torch_does(size, output):
    x, kernel = np.random.default_rng(0).normal(size=(2, 6, 7, 3)), np.random.default_rng(1).normal(size=(size, size, 3, 4))
    full = np.zeros((2, 2 * 6 + 2, 2 * 7 + 2, 4))  # output index 2i + k - padding, one row of room on both sides
    padding = 0 if size == 2 else 1
    for i in range(6):
        for j in range(7):
            for p in range(size):
                for q in range(size):
                    full[:, 2 * i + p - padding + 1, 2 * j + q - padding + 1] += x[:, i, j] @ kernel[p, q]
    expected = full[:, 1:13, 1:15]
    if output is not None:
        expected = expected[:, : output[0], : output[1]]
    ours = jax.jit(functools.partial(conv_transpose2d, output_size=output))(x.astype(np.float32), kernel.astype(np.float32))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("height, width", [(9, 13), (40, 50)])
def test_atrous_sum_is_the_sum_of_the_convolutions(height, width):
    x, kernels, biases = draw(2, height, width, 8), draw(4, 3, 3, 8, 5), draw(4, 5)
    dilations = (6, 12, 18, 24)

    def naive(x, kernels, biases):
        return sum(reference(x, k, 1, d, None) + b for k, d, b in zip(kernels, dilations, biases, strict=True))

    def with_gradients(f):
        def loss(*a):
            y = f(*a)
            return jnp.square(y).mean(), y

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)

    forms = [with_gradients(lambda *a: atrous_sum(*a, dilations)), with_gradients(naive)]
    (ours, got), (theirs, expected) = jax.jit(lambda *a: [form(*a) for form in forms])(x, kernels, biases)
    for mine, other in zip((got, *ours), (expected, *theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
