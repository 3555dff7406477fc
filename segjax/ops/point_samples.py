"""Maps read at points, bilinearly. A point is (x, y) as shares of the width and height: 0 and 1 are the outer edges, beyond them all is 0.

Same as torch's grid_sample(2 * point - 1, align_corners=False), which is `point_sample` of detectron2's PointRend.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

BLOCK = 1024
"""Points whose shares are dense matrices at a time, in the gradient on a TPU."""


def at_shared_points(maps: Array, points: Array) -> Array:
    """maps [B,h,w,C] (float or bool) at points [B,P,2] that all channels share: float32 [B,P,C]."""
    batch, height, width, channels = maps.shape
    flat = maps.reshape(batch, height * width, channels)
    read = jax.vmap(lambda rows, index: rows.at[index].get(mode="promise_in_bounds"))
    return sum(share[..., None] * read(flat, index) for index, share in _corners(points, (height, width)))  # pyright: ignore[reportReturnType]


def at_channel_points(maps: Array, points: Array) -> Array:
    """Channel k of maps [B,h,w,K] (float or bool) at its own points [B,K,P,2]: float32 [B,K,P]. No gradient."""
    batch, height, width, channels = maps.shape
    flat, channel = maps.reshape(batch, -1), jnp.arange(channels)[:, None]
    read = jax.vmap(lambda values, index: values.at[index].get(mode="promise_in_bounds"))
    found = sum(share * read(flat, index * channels + channel) for index, share in _corners(points, (height, width)))
    return lax.stop_gradient(found)  # pyright: ignore[reportReturnType]


@jax.custom_vjp
def at_points(maps: Array, points: Array) -> Array:
    """Each map of float [N,h,w] at its own points [N,P,2]: float32 [N,P]. The points get no gradient."""
    flat = maps.reshape(maps.shape[0], -1)
    read = jax.vmap(lambda values, index: values.at[index].get(mode="promise_in_bounds"))
    return sum(share * read(flat, index) for index, share in _corners(points, (maps.shape[1], maps.shape[2])))  # pyright: ignore[reportReturnType]


def _forward(maps: Array, points: Array) -> tuple[Array, Any]:
    # an array without elements carries the maps' size and type
    return at_points(maps, points), (points, jnp.zeros((0, *maps.shape[1:]), maps.dtype))


def _backward(saved: Any, slope: Array) -> tuple[Array, Array]:
    points, like = saved
    size = like.shape[1:]
    found = lax.platform_dependent(points, slope, tpu=partial(_spread_as_products, size), default=partial(_spread, size))
    return found.astype(like.dtype), jnp.zeros_like(points)


at_points.defvjp(_forward, _backward)


def _corners(points: Array, size: tuple[int, int]) -> list[tuple[Array, Array]]:
    """(row * width + column, share) of the four pixels around each point; the share of a pixel outside is 0."""
    height, width = size
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    corners = []
    for down in (0, 1):
        for over in (0, 1):
            column, row = left.astype(jnp.int32) + over, top.astype(jnp.int32) + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = jnp.abs(1 - over - (x - left)) * jnp.abs(1 - down - (y - top))
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            corners.append((index, jnp.where(inside, share, 0.0)))
    return corners


def _spread(size: tuple[int, int], points: Array, slope: Array) -> Array:
    """slope [N,P] added to the four pixels around every point by their shares: float32 [N,h,w]."""
    total = jnp.zeros((len(points), size[0] * size[1]), jnp.float32)
    add = jax.vmap(lambda values, index, more: values.at[index].add(more, mode="promise_in_bounds"))
    for index, share in _corners(points, size):
        total = add(total, index, share * slope)
    return total.reshape(len(points), *size)


def _spread_as_products(size: tuple[int, int], points: Array, slope: Array) -> Array:
    """`_spread` without a scatter: a pixel's share of a point is the product of two tents, max(0, 1 - |distance|), one an axis."""
    block = min(BLOCK, points.shape[1])
    more = -points.shape[1] % block
    points, slope = jnp.pad(points, ((0, 0), (0, more), (0, 0))), jnp.pad(slope, ((0, 0), (0, more)))
    cut = lambda x: jnp.moveaxis(x.reshape(len(x), -1, block, *x.shape[2:]), 1, 0)

    def step(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        points, slope = part
        across, along = (_tent(points[..., axis] * length - 0.5, length) for axis, length in ((0, size[1]), (1, size[0])))
        more = jnp.einsum("nph,npw->nhw", along * slope[..., None], across, precision=lax.Precision.HIGHEST)
        return total + more, None

    return lax.scan(step, jnp.zeros((len(points), *size), jnp.float32), (cut(points), cut(slope)))[0]


def _tent(position: Array, length: int) -> Array:
    return jnp.maximum(0.0, 1.0 - jnp.abs(jnp.arange(length, dtype=jnp.float32) - position[..., None]))
