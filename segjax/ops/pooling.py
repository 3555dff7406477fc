"""Pooling and its inverse in the form each platform runs well; ties of a maximum go to the first in scan order, as in torch."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.conv import Padding
from segjax.typing import Array


@jax.custom_vjp
def max_pool_2x2_with_index(x: Array) -> tuple[Array, Array]:
    """2x2 max pool of x [B,H,W,C] (an odd last row or column is dropped) and the place of each maximum, uint8 [B,H//2,W//2,C] in 0..3."""
    a, b, c, d = _quarters(x)
    top = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    index = jnp.where(a == top, 0, jnp.where(b == top, 1, jnp.where(c == top, 2, 3))).astype(jnp.uint8)
    return top, index


def _quarters(x: Array) -> list[Array]:
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]


def _pool_index_fwd(x):
    pooled, index = max_pool_2x2_with_index(x)
    return (pooled, index), (index, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _pool_index_bwd(saved, gradients):
    index, shape = saved
    return (max_unpool_2x2(gradients[0], index, shape.shape[1:3]),)


max_pool_2x2_with_index.defvjp(_pool_index_fwd, _pool_index_bwd)


def max_unpool_2x2(x: Array, index: Array, output_size: tuple[int, int]) -> Array:
    """Put each x [B,h,w,C] where `index` (0..3) says in its 2x2 window of the output [B,*output_size,C]; zeros elsewhere, no scatter."""
    b, h, w, c = x.shape
    place = jnp.arange(4, dtype=index.dtype).reshape(2, 1, 2, 1)
    y = jnp.where(index[:, :, None, :, None] == place, x[:, :, None, :, None], jnp.zeros((), x.dtype)).reshape(b, 2 * h, 2 * w, c)
    return jnp.pad(y, ((0, 0), (0, output_size[0] - 2 * h), (0, output_size[1] - 2 * w), (0, 0)))


def average_pool(x: Array, size: int) -> Array:
    """Means of x [B,H,W,C] over whole windows of size x size, `size` apart (torch's `AvgPool2d(size)`; what is left over is dropped)."""
    if size == 1:
        return x
    b, h, w, c = x.shape
    x = x[:, : h // size * size, : w // size * size].reshape(b, h // size, size, w // size, size, c)
    return x.mean((2, 4), dtype=jnp.float32).astype(x.dtype)


def max_pool(x: Array, *, window: int = 3, stride: int = 2, padding: int = 1, ceil_mode: bool = False) -> Array:
    """Max pool of x [B,H,W,C] as torch's `MaxPool2d`, `ceil_mode` included (Caffe's sizes: 512x1024 -> 129 columns at stride 8)."""
    pads = tuple(_pool_padding(size, window, stride, padding, ceil_mode) for size in x.shape[1:3])
    return _max_pool(x, window, stride, pads)


def _pool_padding(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> tuple[int, int]:
    span = size + 2 * padding - window
    outputs = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (outputs - 1) * stride >= size + padding:  # torch: the last window must start inside the image or its left padding
        outputs -= 1
    return padding, max(0, (outputs - 1) * stride + window - size - padding)


def _reduce_window(x: Array, window: int, stride: int, pads: Padding) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *pads, (0, 0)))


def _views(x: Array, window: int, stride: int, pads: Padding) -> list[Array]:
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    h, w = ((size - window) // stride for size in x.shape[1:3])
    return [x[:, i : i + h * stride + 1 : stride, j : j + w * stride + 1 : stride] for i in range(window) for j in range(window)]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, pads):
    def slices(x):
        views = _views(x, window, stride, pads)
        top = views[0]
        for view in views[1:]:
            top = jnp.maximum(top, view)
        return top

    return lax.platform_dependent(x, cpu=slices, default=lambda x: _reduce_window(x, window, stride, pads))


def _max_pool_fwd(x, window, stride, pads):
    top = _max_pool(x, window, stride, pads)
    return top, (x, top)


def _max_pool_bwd(window, stride, pads, saved, gradient):
    def slices(x, top, gradient):
        b, h, w, c = x.shape
        (up, down), (left, right) = pads
        dx = jnp.zeros((b, h + up + down, w + left + right, c), gradient.dtype)
        free = jnp.ones(top.shape, bool)
        rows, columns = top.shape[1:3]
        for n, view in enumerate(_views(x, window, stride, pads)):
            i, j = divmod(n, window)
            hit = free & (view == top)
            free = free & ~hit
            part = jnp.where(hit, gradient, 0)
            dilated = (
                (0, 0, 0),
                (i, dx.shape[1] - i - (rows - 1) * stride - 1, stride - 1),
                (j, dx.shape[2] - j - (columns - 1) * stride - 1, stride - 1),
            )
            dx = dx + lax.pad(part, jnp.zeros((), part.dtype), (*dilated, (0, 0, 0)))
        return dx[:, up : up + h, left : left + w]

    def reference(x, top, gradient):
        return jax.vjp(lambda x: _reduce_window(x, window, stride, pads), x)[1](gradient)[0]

    return (lax.platform_dependent(*saved, gradient, cpu=slices, default=reference),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
