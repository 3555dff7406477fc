"""Depthwise convolution in the form each platform runs well: multiply-adds a tap on CPU, `lax`'s grouped convolution on CUDA, both on TPU.

On CPU a grouped convolution runs 13-27x slower than one multiply-add a tap. The kernel's gradient walks over the rows there with few
partial sums, which stay in the cache (3x faster than a reduction a tap); all of it serves scanned layers as well. For TPUs their compiler
estimates half of the cycles for a 3x3 whose output and input gradient are shifts and whose kernel's gradient is grouped, and no fewer for
a 7x7 (`scripts/tpu_forms.py`); no TPU has run either. The form is chosen at lowering.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.conv import Padding, same_padding
from segjax.typing import Array

_FEW_TAPS = 9  # up to which shifts are the better form on TPUs
_LANES = 32  # columns of partial sums that the kernel's gradient keeps (measured on 2 cores)


@partial(jax.jit, static_argnames=("stride", "dilation", "padding"))
def depthwise_conv2d(x: Array, kernel: Array, *, stride: int = 1, dilation: int = 1, padding: Padding | None = None) -> Array:
    """Cross-correlation of each channel of x [B,H,W,C] with its own kernel [kh,kw,1,C], as torch's `conv2d(groups=C)`.

    padding: torch's symmetric one by default, which keeps the size at stride 1 and odd kernels. Returns [B,h,w,C] of x's type.
    """
    padding = same_padding((kernel.shape[0], kernel.shape[1]), dilation) if padding is None else padding
    return _depthwise(x, kernel, stride, dilation, padding)


def _grouped(x: Array, kernel: Array, stride: int, dilation: int, padding: Padding) -> Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    steps, rates = (stride, stride), (dilation, dilation)
    return lax.conv_general_dilated(x, kernel, steps, padding, None, rates, numbers, feature_group_count=x.shape[-1])


def _shifted(x: Array, kernel: Array, stride: int, dilation: int, padding: Padding) -> Array:
    """One multiply-add a tap, summed in float32.

    The barrier makes the padded image be written once. Without it XLA sees that the middle tap is x itself and computes what x comes from
    a second time for it (MobileSAM's encoder takes 6 to 7 % longer then).
    """
    kh, kw = kernel.shape[:2]
    x = lax.optimization_barrier(_padded(x, padding))
    h, w = ((size - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(x.shape[1:3], (kh, kw), strict=True))
    total = jnp.zeros((x.shape[0], h, w, x.shape[-1]), jnp.float32)
    for i in range(kh):
        for j in range(kw):
            total += _tap(x, i * dilation, j * dilation, h, w, stride).astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)


def _padded(x: Array, padding: Padding) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))


def _tap(x: Array, row: int, column: int, h: int, w: int, stride: int) -> Array:
    return x[:, row : row + (h - 1) * stride + 1 : stride, column : column + (w - 1) * stride + 1 : stride]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x, kernel, stride, dilation, padding):
    shifted, grouped = (partial(form, stride=stride, dilation=dilation, padding=padding) for form in (_shifted, _grouped))
    return lax.platform_dependent(x, kernel, cpu=shifted, tpu=shifted if _shifts_on_tpu(kernel, stride) else grouped, default=grouped)


def _shifts_on_tpu(kernel, stride):
    return stride == 1 and kernel.shape[0] * kernel.shape[1] <= _FEW_TAPS


def _forward(x, kernel, stride, dilation, padding):
    return _depthwise(x, kernel, stride, dilation, padding), (x, kernel)


def _backward(stride, dilation, padding, saved, dy):
    def reference(x, kernel, dy):
        return jax.vjp(lambda a, b: _grouped(a, b, stride, dilation, padding), x, kernel)[1](dy)

    def shifts(x, kernel, dy):
        dx = _input_gradient(x, kernel, dy, stride, dilation, padding)
        return dx, _kernel_gradient(x, kernel, dy, stride, dilation, padding)

    tpu = partial(_mixed_gradients, stride=stride, dilation=dilation, padding=padding) if _shifts_on_tpu(saved[1], stride) else reference
    return lax.platform_dependent(*saved, dy, cpu=shifts, tpu=tpu, default=reference)


_depthwise.defvjp(_forward, _backward)


def _mixed_gradients(x, kernel, dy, stride, dilation, padding):
    """The input's gradient by shifts, the kernel's by XLA's grouped convolution."""
    kernel_gradient = jax.vjp(lambda kernel: _grouped(x, kernel, stride, dilation, padding), kernel)[1](dy)
    return _input_gradient(x, kernel, dy, stride, dilation, padding), *kernel_gradient


def _input_gradient(x, kernel, dy, stride, dilation, padding):
    """dy, its pixels `stride` apart, correlated with the flipped kernel."""
    if stride > 1:
        apart = (0, 0, stride - 1)
        dy = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), apart, apart, (0, 0, 0)))
    back = []
    for size, outputs, k, (low, _) in zip(x.shape[1:3], dy.shape[1:3], kernel.shape[:2], padding, strict=True):
        first = dilation * (k - 1) - low
        back.append((first, size + low - outputs))
    return _shifted(dy, kernel[::-1, ::-1], 1, dilation, tuple(back)).astype(x.dtype)


def _kernel_gradient(x, kernel, dy, stride, dilation, padding):
    """Sum over images and pixels of (shifted input) * dy for each tap: a scan over the rows of dy, partial sums a few columns wide."""
    kh, kw, _, c = kernel.shape
    b, h, w, _ = dy.shape
    lanes = min(w, _LANES)
    spare = -w % lanes  # columns of zeros that fill the last group
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, spare), (0, 0)))
    x = _padded(x, (padding[0], (padding[1][0], padding[1][1] + spare * stride)))
    reach, wide = dilation * (kh - 1) + 1, w + spare

    def row(sums, r):
        ours = lax.dynamic_slice_in_dim(dy, r, 1, axis=1).astype(jnp.float32)
        theirs = lax.dynamic_slice_in_dim(x, r * stride, reach, axis=1).astype(jnp.float32)
        taps = [(_tap(theirs, i * dilation, j * dilation, 1, wide, stride) * ours) for i in range(kh) for j in range(kw)]
        return [total + tap.reshape(-1, lanes, c).sum(0) for total, tap in zip(sums, taps, strict=True)], None

    sums, _ = lax.scan(row, [jnp.zeros((lanes, c), jnp.float32)] * (kh * kw), jnp.arange(h))
    return jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape).astype(kernel.dtype)
