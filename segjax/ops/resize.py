"""Resizing as torch does it: bilinear as two small matrix products, nearest as two takes."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array


@functools.lru_cache(maxsize=256)
def interpolation_matrix(size_in: int, size_out: int, align_corners: bool = False) -> np.ndarray:
    """Bilinear weights of one axis, float32 [size_out, size_in], computed in float64. Rows sum to 1. Read-only.

    align_corners False: half-pixel centres, coordinates clamped to the edge, no antialiasing when shrinking. True: the corner
    pixels' centres coincide. Source: torch.nn.functional.interpolate(mode="bilinear").
    """
    if size_in < 1 or size_out < 1:
        raise ConfigError(f"resize from {size_in} to {size_out} pixels: both sizes must be at least 1")
    index = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = index * ((size_in - 1) / (size_out - 1) if size_out > 1 else 0.0)
    else:
        position = np.maximum((index + 0.5) * (size_in / size_out) - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(int), size_in - 1)
    share = position - low
    matrix = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size_in - 1)), share)
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def bilinear(x: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    """Bilinear resize of float [B,H,W,C] to [B,*size,C] in x's dtype, computed in float32 (float64 stays).

    Equals torch.nn.functional.interpolate(mode="bilinear", antialias=False) in both modes. Raises ConfigError for integer input.
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ConfigError(f"bilinear resize of {x.dtype}{list(x.shape)}: expected float [B,H,W,C] (labels are resized by `nearest`)")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    (height, width), out = size, x.astype(dtype)
    # the cheaper order: rows first when they shrink, columns first when rows grow; an axis that keeps its size is left alone
    for axis, length in ((1, height), (2, width)) if height < x.shape[1] else ((2, width), (1, height)):
        if out.shape[axis] != length:
            out = (_rows if axis == 1 else _columns)(out, interpolation_matrix(x.shape[axis], length, align_corners).astype(dtype))
    return out.astype(x.dtype)


def _rows(x: Array, matrix: np.ndarray) -> Array:
    """[B,H,W,C] -> [B,M,W,C]. The matrix is repeated over the batch: XLA's CPU compiler transposes x for an unbatched one."""
    batch, height, width, channels = x.shape
    tiled = jnp.broadcast_to(jnp.asarray(matrix), (batch, *matrix.shape))
    out = jnp.matmul(tiled, x.reshape(batch, height, width * channels), precision=lax.Precision.HIGHEST)
    return out.reshape(batch, -1, width, channels)


def _columns(x: Array, matrix: np.ndarray) -> Array:
    """[B,H,W,C] -> [B,H,M,C] as one plain product with W last."""
    return jnp.matmul(x.swapaxes(2, 3), jnp.asarray(matrix.T), precision=lax.Precision.HIGHEST).swapaxes(2, 3)


class Taps(NamedTuple):
    """Where each of n pixels of a resized axis lies: between `low` and `high` int32 [n], at the second one's `share` float32 [n]."""

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray


def taps(length: int, size: int, kept: int | None = None) -> Taps:
    """Of the first `kept` (default all) of `size` pixels to which an axis of `length` is resized bilinearly, without antialiasing."""
    place = np.maximum((np.arange(size if kept is None else kept) + 0.5) * (length / size) - 0.5, 0.0)
    low = np.minimum(np.floor(place).astype(np.int32), length - 1)
    return Taps(low, np.minimum(low + 1, length - 1), (place - low).astype(np.float32))


def between(x: Array, taps: Any, axis: int) -> Array:
    """x resized along one axis by its `taps`: two takes, where `bilinear` multiplies (768 x 768 x 3 to 1024, CPU: 1.7 ms against 84).

    Not for what needs a gradient: that of a take is a scatter.
    """
    low, high, share = taps
    share = share.reshape(-1, *(1,) * (x.ndim - 1 - axis))
    return jnp.take(x, low, axis, mode="clip") * (1 - share) + jnp.take(x, high, axis, mode="clip") * share


def nearest(label: Array, size: tuple[int, int], *, half_pixel: bool = False) -> Array:
    """Nearest-neighbour resize of [B,H,W] or [B,H,W,C], any dtype, to `size`.

    half_pixel False: pixel floor(i * in / out), torch's "nearest" and OpenCV's INTER_NEAREST. True: floor((i + 1/2) * in / out),
    torch's "nearest-exact" and PIL's NEAREST. Indices are exact integers;
    where a centre falls exactly between two pixels, the others' rounding may choose the lower one.
    """
    for axis, length in zip((1, 2), size, strict=True):
        size_in, index = label.shape[axis], np.arange(length)
        index = (2 * index + 1) * size_in // (2 * length) if half_pixel else index * size_in // length
        if length != size_in:
            label = jnp.take(label, index, axis=axis)
    return label


def bilinear_within(x: Array, sizes: Array, canvas: tuple[int, int], align_corners: bool = False) -> Array:
    """`bilinear` of row b of float [B,H,W,C] to sizes[b], at the top left of [B,*canvas,C]; what lies beyond repeats the last pixels.

    sizes: int32 [B,2], (height, width) up to the canvas: data, not shapes, so one program serves all of them.
    """
    out = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    rows, columns = (
        _weights(size_in, sizes[:, axis], length, align_corners, out.dtype)
        for axis, (size_in, length) in enumerate(zip(x.shape[1:3], canvas, strict=True))
    )
    out = jnp.einsum("bmh,bhwc->bmwc", rows, out, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bnw,bmwc->bmnc", columns, out, precision=lax.Precision.HIGHEST).astype(x.dtype)


def _weights(size_in: int, sizes: Array, length: int, align_corners: bool, dtype) -> Array:
    """`interpolation_matrix` from `size_in` to each of `sizes` [B], [B, length, size_in]. Positions are exact ratios."""
    index, size = jnp.minimum(jnp.arange(length), sizes[:, None] - 1), sizes[:, None]
    if align_corners:
        over, under = index * (size_in - 1), jnp.maximum(size - 1, 1)
    else:
        over, under = jnp.maximum((2 * index + 1) * size_in - size, 0), 2 * size
    low = jnp.minimum(over // under, size_in - 1)
    share = ((over - low * under) / under).astype(dtype)[..., None]
    pixel = jnp.arange(size_in)
    at = lambda tap: (tap[..., None] == pixel).astype(dtype)
    return (1 - share) * at(low) + share * at(jnp.minimum(low + 1, size_in - 1))


def nearest_within(label: Array, sizes: Array, canvas: tuple[int, int]) -> Array:
    """`nearest` of row b of [B,H,W] to sizes[b] (int32 [B,2], data), at the top left of [B,*canvas]; beyond it the last pixels repeat."""
    for axis, length in zip((1, 2), canvas, strict=True):
        size_in, size = label.shape[axis], sizes[:, axis - 1, None]
        index = jnp.minimum(jnp.arange(length), size - 1) * size_in // size
        label = jnp.take_along_axis(label, jnp.expand_dims(index, 3 - axis), axis=axis)
    return label
