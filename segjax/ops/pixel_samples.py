"""A fixed number of pixels of each image: where they lie, their labels, and what a coarser map says there.

A position is row * W + column in the label's grid [H,W].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.resize import interpolation_matrix
from segjax.typing import Array, Key


def uniform_positions(key: Key, batch: int, pixels: int, count: int) -> Array:
    """Positions drawn with replacement, every one of `pixels` (H * W) equally likely. int32 [batch, count]."""
    return jax.random.randint(key, (batch, count), 0, pixels)


def balanced_positions(key: Key, label: Array, count: int, num_classes: int) -> Array:
    """Positions drawn with replacement, every class of an image equally likely and every pixel of a class too. int32 [B, count].

    label int [B,H,W]; ids outside 0..num_classes-1 (255) are drawn from an image that holds nothing else, and from no other.
    Weights are whole shares of 2^32, added up exactly: in an image of n pixels and k classes a class's probability is n k / 2^32 of
    itself off at most (0.2 % at 1024 x 512, 19 classes), where float32 sums would lose single pixels.
    """
    flat = label.reshape(label.shape[0], -1).astype(jnp.int32)
    counts = jnp.stack([jnp.sum(flat == k, -1) for k in range(num_classes)], -1).astype(jnp.uint32)
    classes = jnp.sum(counts > 0, -1, keepdims=True, dtype=jnp.uint32)
    share = jnp.uint32(2**32 - 1) // jnp.maximum(classes * counts, 1)
    known = (flat >= 0) & (flat < num_classes)
    weight = jnp.where(known, jnp.take_along_axis(share, jnp.clip(flat, 0, num_classes - 1), -1), 0)
    weight = jnp.where(classes > 0, weight, 1)
    until = jnp.cumsum(weight, -1, dtype=jnp.uint32)
    place = jax.random.randint(key, (len(flat), count), 0, until[:, -1:], jnp.uint32)
    return jax.vmap(lambda edges, x: jnp.searchsorted(edges, x, side="right"))(until, place).astype(jnp.int32)


def labels_at(label: Array, position: Array) -> Array:
    """label [B,H,W] at position [B,S]: [B,S], label's dtype."""
    return jnp.take_along_axis(label.reshape(label.shape[0], -1), position, 1)


def at_positions(features: Array, position: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    """What `bilinear(features, size, align_corners)` holds at position [B,S], without making it: float [B,h,w,C] -> [B,S,C].

    Computed in float32 and returned in features' dtype. Each sample reads a window of at most 2 x 2 and its gradient goes there. An axis
    that has its size already is read at one place. Raises ConfigError for integer features or batches that differ.
    """
    if features.ndim != 4 or not jnp.issubdtype(features.dtype, jnp.floating) or position.shape[:1] != features.shape[:1]:
        raise ConfigError(
            f"features {features.dtype}{list(features.shape)} at positions {list(position.shape)}: expected float [B,h,w,C] and [B,S]"
        )
    (height, width), channels = size, features.shape[-1]
    row, row_weight = _taps(features.shape[1], height, align_corners)
    column, column_weight = _taps(features.shape[2], width, align_corners)
    y, x = position // width, position % width
    window = (row_weight.shape[1], column_weight.shape[1], channels)

    def read(image: Array, start: Array) -> Array:
        return lax.dynamic_slice(image, (start[0], start[1], 0), window)

    start = jnp.stack([jnp.asarray(row)[y], jnp.asarray(column)[x]], -1)
    found = jax.vmap(jax.vmap(read, (None, 0)))(features, start).astype(jnp.promote_types(features.dtype, jnp.float32))
    weight = jnp.asarray(row_weight)[y][..., :, None] * jnp.asarray(column_weight)[x][..., None, :]
    return jnp.sum(found * weight[..., None], (2, 3)).astype(features.dtype)


def _taps(size_in: int, size_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where each output of one axis begins to read, int32 [size_out], and the weights of what it reads, float32 [size_out, 1 or 2]."""
    matrix = interpolation_matrix(size_in, size_out, align_corners)
    taps = 1 if size_in in (1, size_out) else 2
    first = np.minimum((matrix != 0).argmax(1), size_in - taps).astype(np.int32)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(taps), 1)
