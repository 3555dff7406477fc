"""Multi-scale deformable attention (Zhu et al. 2021, arXiv 2010.04159): every query reads a few places of a few maps, bilinearly.

Places are worked on one after the other, in one scan over levels and points whose body is four fused gathers: nothing larger than the
result is stored, however many queries there are. The gradient is written out likewise. On a CPU that is 27 times as fast as one gather of
all places, 12 times with its gradient (whose one scatter of all rows is what takes so long). On a TPU the gradient of the value is a
product with dense matrices: its scatter takes minutes to compile and, by the v5e compiler's estimate, over seven times the cycles.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array

BLOCK = 512
"""Queries whose shares are a dense matrix at a time, in the gradient on a TPU."""


def deformable_attention(value: Array, shapes: Sequence[tuple[int, int]], locations: Array, weight: Array) -> Array:
    """sum over levels and points of weight * (the level's map at the location), [B,N,H,D] of value's type.

    value [B,S,H,D]: the L maps of `shapes` ((height, width), static) one after the other, row by row, so S is the sum of their areas.
    locations [B,N,H,L,P,2]: (x, y) of P points a level, of each of N queries and H heads, as shares of the map's width and height;
    0 and 1 are its outer edges, beyond which everything is zero. weight [B,N,H,L,P], usually a softmax over the L * P points.
    Coordinates and sums are float32. Same as torch's grid_sample(mode="bilinear", padding_mode="zeros", align_corners=False), weighted
    and summed (`multi_scale_deformable_attention` in transformers' modeling_mask2former.py). ConfigError: shapes that do not fit.
    """
    b, n, h, levels, points, _ = locations.shape
    shapes = tuple((int(height), int(width)) for height, width in shapes)
    area = sum(height * width for height, width in shapes)
    if value.shape[1] != area or levels != len(shapes):
        raise ConfigError(f"deformable attention over maps {shapes}: {value.shape[1]} values and {levels} levels, expected {area}")
    size = np.asarray([(width, height) for height, width in shapes], np.float32)
    places = locations.astype(jnp.float32) * size[:, None] - 0.5
    x, y = (_steps(places[..., axis]) for axis in (0, 1))
    result: Any = _read(value.transpose(0, 2, 1, 3), x, y, _steps(weight.astype(jnp.float32)), shapes)
    return result.transpose(0, 2, 1, 3).astype(value.dtype)


def _steps(x: Array) -> Array:
    """[B,N,H,L,P] -> [L*P,B,H,N]."""
    b, n, h, levels, points = x.shape
    return x.transpose(3, 4, 0, 2, 1).reshape(levels * points, b, h, n)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _read(value: Array, x: Array, y: Array, weight: Array, shapes: tuple[tuple[int, int], ...]) -> Array:
    """value [B,H,S,D]; x, y in pixels and weight float32 [L*P,B,H,N] -> float32 [B,H,N,D]."""
    start = jnp.zeros((*x.shape[1:], value.shape[-1]), jnp.float32)

    def step(total: Array, place: tuple[Array, ...]) -> tuple[Array, None]:
        x, y, weight, level = place
        for index, share, _, _ in _corners(x, y, level):
            total = total + (share * weight)[..., None] * _rows(value, index).astype(jnp.float32)
        return total, None

    return lax.scan(step, start, (x, y, weight, _levels(shapes, len(x))))[0]


def _forward(value, x, y, weight, shapes):
    return _read(value, x, y, weight, shapes), (value, x, y, weight)


def _backward(shapes, saved, gradient):
    value, x, y, weight = saved

    def step(_: None, place: tuple[Array, ...]) -> tuple[None, tuple[Array, ...]]:
        x, y, weight, level = place
        corners = _corners(x, y, level)
        by = [jnp.einsum("bhnd,bhnd->bhn", _rows(value, index).astype(jnp.float32), gradient) for index, *_ in corners]
        dx, dy, dweight = (sum(corner[axis] * dot for corner, dot in zip(corners, by, strict=True)) for axis in (2, 3, 1))
        return None, (dx * weight, dy * weight, dweight)  # pyright: ignore[reportReturnType]  # there are corners

    _, rest = lax.scan(step, None, (x, y, weight, _levels(shapes, len(x))))
    spread = partial(_spread, shapes), partial(_spread_as_products, shapes)
    dvalue = lax.platform_dependent(x, y, weight, gradient, tpu=spread[1], default=spread[0])
    return dvalue.astype(value.dtype), *rest


_read.defvjp(_forward, _backward)


def _levels(shapes: tuple[tuple[int, int], ...], steps: int) -> Array:
    """(height, width, first row of the map) of the level of every step, int32 [steps,3]."""
    first = np.cumsum([0, *(height * width for height, width in shapes[:-1])])
    table = np.asarray([(*shape, start) for shape, start in zip(shapes, first, strict=True)], np.int32)
    return jnp.asarray(table.repeat(steps // len(shapes), 0))


def _corners(x: Array, y: Array, level: Array) -> list[tuple[Array, Array, Array, Array]]:
    """The four pixels around each place: (row of the value, bilinear share, its derivatives by x and y); shares outside the map are 0."""
    height, width, first = level[0], level[1], level[2]
    left, top = jnp.floor(x), jnp.floor(y)
    right, below = x - left, y - top
    corners = []
    for down in (0, 1):
        for over in (0, 1):
            column, row = left.astype(jnp.int32) + over, top.astype(jnp.int32) + down
            inside = ((column >= 0) & (column < width) & (row >= 0) & (row < height)).astype(jnp.float32)
            index = first + jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            across, along = right if over else 1 - right, below if down else 1 - below
            corners.append((index, across * along * inside, (2 * over - 1) * along * inside, (2 * down - 1) * across * inside))
    return corners


def _rows(value: Array, index: Array) -> Array:
    """value [B,H,S,D], index [B,H,N] within S -> [B,H,N,D]. Batch and heads stay axes of the gather, so that it shards along them."""
    return jax.vmap(jax.vmap(lambda value, index: value.at[index].get(mode="promise_in_bounds")))(value, index)


def _spread(shapes: tuple[tuple[int, int], ...], x: Array, y: Array, weight: Array, gradient: Array) -> Array:
    """The gradient of the value, [B,H,S,D]: gradient [B,H,N,D] added to the four pixels around every place by their shares."""

    def step(total: Array, place: tuple[Array, ...]) -> tuple[Array, None]:
        x, y, weight, level = place
        corners = _corners(x, y, level)
        index = jnp.stack([index for index, *_ in corners], -1)
        share = jnp.stack([share for _, share, *_ in corners], -1) * weight[..., None]
        return _add(total, index, share[..., None] * gradient[..., None, :]), None

    area = sum(height * width for height, width in shapes)
    start = jnp.zeros((*gradient.shape[:2], area, gradient.shape[-1]), jnp.float32)
    return lax.scan(step, start, (x, y, weight, _levels(shapes, len(x))))[0]


def _add(total: Array, index: Array, rows: Array) -> Array:
    """total [B,H,S,D] with rows [B,H,N,K,D] added at index [B,H,N,K]."""
    return jax.vmap(jax.vmap(lambda total, index, rows: total.at[index].add(rows, mode="promise_in_bounds")))(total, index, rows)


def _spread_as_products(shapes: tuple[tuple[int, int], ...], x: Array, y: Array, weight: Array, gradient: Array) -> Array:
    """`_spread` without a scatter: the shares of all pixels of a map as dense matrices, BLOCK queries at a time.

    A pixel's share of a place is the product of two tents, max(0, 1 - |distance|), one along each axis.
    """
    queries, points = gradient.shape[2], len(x) // len(shapes)
    block = min(BLOCK, queries)
    cut = lambda a, axis: jnp.moveaxis(_cut(a, axis, block), axis, 0)
    parts = (*(cut(a.reshape(len(shapes), points, *a.shape[1:]), 4) for a in (x, y, weight)), cut(gradient, 2))

    def step(totals: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        x, y, weight, gradient = part
        found = []
        for level, ((height, width), total) in enumerate(zip(shapes, totals, strict=True)):
            across = _tent(x[level], width)
            along = _tent(y[level], height) * weight[level][..., None]
            share = sum(along[p, ..., :, None] * across[p, ..., None, :] for p in range(points))
            found.append(total + jnp.einsum("bhnyx,bhnd->bhyxd", share, gradient, preferred_element_type=jnp.float32))
        return tuple(found), None

    b, h, _, channels = gradient.shape
    totals, _ = lax.scan(step, tuple(jnp.zeros((b, h, *shape, channels), jnp.float32) for shape in shapes), parts)
    return jnp.concatenate([total.reshape(b, h, -1, channels) for total in totals], 2)


def _cut(x: Array, axis: int, block: int) -> Array:
    """The axis in blocks, [...,blocks,block,...], filled up with zeros (which weigh nothing)."""
    length = x.shape[axis]
    x = jnp.pad(x, [(0, -length % block if n == axis else 0) for n in range(x.ndim)])
    return x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


def _tent(position: Array, length: int) -> Array:
    """max(0, 1 - |pixel - position|) for the pixels 0..length-1 of an axis, added as the last one."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(jnp.arange(length, dtype=jnp.float32) - position[..., None]))
