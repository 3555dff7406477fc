"""The convolution primitives of the whole package, each in the form its platform runs well.

XLA reverses between platforms, so the form is chosen at lowering by `jax.lax.platform_dependent`. On CPU the gradient of a
`lax` convolution inside a loop is not canonicalised and runs 10-18x slower, and a 1x1 convolution is best as a product; its gradients
are in conv_gradients.py. On TPU a convolution of stride 1 over few images takes their columns for its batch (conv_columns.py). On CUDA
`lax`'s own forms are kept. All kernels are HWIO, all images NHWC, all paddings those of torch: symmetric, `dilation * (k - 1) / 2` by
default.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.conv_columns import columns_conv, columns_gradients, columns_serve
from segjax.ops.conv_gradients import Padding, gradients, lax_conv
from segjax.typing import Array


def same_padding(kernel_size: tuple[int, int], dilation: int = 1) -> Padding:
    """Torch's symmetric padding that keeps the size of a stride-1 convolution with an odd kernel."""
    return tuple((dilation * (k - 1) // 2,) * 2 for k in kernel_size)  # pyright: ignore[reportReturnType]


@partial(jax.jit, static_argnames=("stride", "dilation", "padding"))
def conv2d(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1, padding: Padding | None = None) -> Array:
    """Cross-correlation of x [B,H,W,I] with kernel [kh,kw,I,O], as torch's `conv2d`.

    A 1x1 kernel is a matrix product everywhere; a kernel as large as its stride is one product over space-to-depth patches on CPU.
    """
    kh, kw = kernel.shape[:2]
    padding = same_padding((kh, kw), dilation) if padding is None else padding
    if (kh, kw) == (1, 1) and padding == ((0, 0), (0, 0)):
        return product(x[:, ::stride, ::stride], kernel[0, 0])
    if kh == kw == stride and dilation == 1 and padding == ((0, 0), (0, 0)):
        whole = partial(lax_conv, stride=stride, dilation=1, padding=padding)  # 2.5x fewer cycles than the product on TPU
        return lax.platform_dependent(x, kernel, cpu=_patch_product, default=whole)
    return _conv(x, kernel, stride, dilation, padding)


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """x [...,I] @ kernel [I,O]; its kernel gradient moves the narrower operand, where autodiff always moves dy."""
    return x @ kernel


def _product_bwd(saved, dy):
    x, kernel = saved
    if x.ndim == 4 and x.shape[2] % 8:
        dk = lax.platform_dependent(x, dy, tpu=_sum_of_products, default=_product_of_rows)
    else:
        dk = _product_of_rows(x, dy)
    return dy @ kernel.T, dk.astype(kernel.dtype)


def _sum_of_products(x, dy):
    """As one contraction over all dimensions but the last: on a TPU an image whose width is no multiple of 8 is copied to become rows."""
    most = tuple(range(x.ndim - 1))
    over = lambda left, right: lax.dot_general(left, right, ((most, most), ((), ())))
    return over(x, dy) if x.shape[-1] <= dy.shape[-1] else over(dy, x).T


def _product_of_rows(x, dy):
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return x.T @ dy if x.shape[1] <= dy.shape[1] else (dy.T @ x).T


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_bwd)


def _patch_product(x: Array, kernel: Array) -> Array:
    return product(_patches(x, kernel.shape[0]), kernel.reshape(-1, kernel.shape[-1]))


def _patches(x: Array, size: int) -> Array:
    b, h, w, c = x.shape
    x = x[:, : h // size * size, : w // size * size].reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, stride, dilation, padding):
    whole = partial(lax_conv, stride=stride, dilation=dilation, padding=padding)
    if not columns_serve(x, stride):
        return whole(x, kernel)
    return lax.platform_dependent(x, kernel, tpu=partial(columns_conv, dilation=dilation, padding=padding), default=whole)


def _conv_fwd(x, kernel, stride, dilation, padding):
    return _conv(x, kernel, stride, dilation, padding), (x, kernel)


def _conv_bwd(stride, dilation, padding, saved, dy):
    def reference(x, kernel, dy):
        return jax.vjp(lambda a, b: lax_conv(a, b, stride, dilation, padding), x, kernel)[1](dy)

    products = partial(gradients, stride=stride, dilation=dilation, padding=padding)
    columns = partial(columns_gradients, dilation=dilation, padding=padding) if columns_serve(saved[0], stride) else reference
    return lax.platform_dependent(*saved, dy, cpu=products, tpu=columns, default=reference)


_conv.defvjp(_conv_fwd, _conv_bwd)


def conv_transpose2d(x: Array, kernel: Array, *, output_size: tuple[int, int] | None = None) -> Array:
    """Transposed convolution of stride 2 as one product and depth-to-space: x [B,h,w,I], kernel [k,k,I,O], k = 2 or 3.

    k = 2 is torch's `ConvTranspose2d(kernel=2, stride=2)`, k = 3 its `ConvTranspose2d(3, stride=2, padding=1, output_padding=1)`;
    `kernel[i, j]` is torch's `weight[:, :, i, j]`. Output [B,2h,2w,O], cropped to `output_size` when that is one less.
    """
    b, h, w, _ = x.shape
    o = kernel.shape[-1]
    if kernel.shape[0] == 2:
        y = x @ kernel.transpose(2, 0, 1, 3).reshape(-1, 4 * o)
    else:
        y = _neighbours(x) @ _phase_kernel(kernel)
    y = y.reshape(b, h, w, 2, 2, o).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, o)
    return y if output_size is None else y[:, : output_size[0], : output_size[1]]


def _neighbours(x: Array) -> Array:
    """x with its right, lower and lower-right neighbours as channels [B,h,w,4I]; zero beyond the edge."""
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return jnp.concatenate([x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]], axis=-1)


def _phase_kernel(kernel: Array) -> Array:
    """The 3x3 kernel as [4I, 4O]: output phase (p, q) takes tap 1 (phase 0), taps 2 and 0 of here and the neighbour (phase 1)."""
    taps = {(0, 0): 1, (1, 0): 2, (1, 1): 0}  # (phase, neighbour) -> tap; phase 0 meets no neighbour
    zero = jnp.zeros_like(kernel[0, 0])
    rows = []
    for down in (0, 1):
        for right in (0, 1):
            meets = [(taps.get((p, down)), taps.get((q, right))) for p in (0, 1) for q in (0, 1)]
            rows.append(jnp.concatenate([zero if i is None or j is None else kernel[i, j] for i, j in meets], axis=-1))
    return jnp.concatenate(rows, axis=0)


def atrous_sum(x: Array, kernels: Array, biases: Array, dilations: tuple[int, ...]) -> Array:
    """Sum of 3x3 atrous convolutions of one input (DeepLabV2's classifier) as one product and shifted additions.

    x [B,h,w,I], kernels [R,3,3,I,O], biases [R,O]. The R centre taps are one tap. Exact; each product is made once and its
    rows are moved, so the input is read once instead of 9R times.
    """
    b, h, w, _ = x.shape
    taps = [(0, 0, kernels[:, 1, 1].sum(0))]
    for r, dilation in enumerate(dilations):
        taps += [((i - 1) * dilation, (j - 1) * dilation, kernels[r, i, j]) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    taps = [tap for tap in taps if abs(tap[0]) < h and abs(tap[1]) < w]
    o = kernels.shape[-1]
    products = x @ jnp.concatenate([kernel for _, _, kernel in taps], axis=-1)
    total = jnp.zeros((b, h, w, o), products.dtype) + biases.sum(0).astype(products.dtype)
    for n, (row, column, _) in enumerate(taps):
        part = products[..., n * o : (n + 1) * o]
        part = part[:, max(row, 0) : h + min(row, 0), max(column, 0) : w + min(column, 0)]
        total = total + jnp.pad(part, ((0, 0), (max(-row, 0), max(row, 0)), (max(-column, 0), max(column, 0)), (0, 0)))
    return total
