"""Labels that two judges agree on: DiGA's selection without a threshold, and its labels from two scales."""

from collections.abc import Sequence

import jax.numpy as jnp

from segjax.ops.row_blocks import Chunks, upsampled_map
from segjax.typing import IGNORE, Array


def consensus(first: Array, second: Array) -> Array:
    """The label where both say the same, 255 elsewhere: two int arrays of one shape -> uint8.

    DiGA's bilateral consensus takes the offline pseudo-label and `ops.prototypes.nearest_centroid` of the teacher's features: no
    confidence is compared with anything, and what is kept changes as teacher and centroids move.
    """
    return jnp.where(first == second, first, IGNORE).astype(jnp.uint8)


def max_labels(logits: Sequence[Array], size: tuple[int, int], *, align_corners: bool = False, chunks: Chunks = "auto") -> Array:
    """argmax of the element-wise largest of several logits [B,h,w,K], each up-sampled to `size`: uint8 [B,*size]. No gradient.

    DiGA's pseudo-labels and its evaluation: the network on the image and on the image at half size, align_corners=True.
    """
    return upsampled_map(_largest, tuple(logits), (), size, align_corners=align_corners, chunks=chunks)


def _largest(full: tuple[Array, ...], maps: tuple) -> Array:
    largest = full[0]
    for other in full[1:]:
        largest = jnp.maximum(largest, other)
    return jnp.argmax(largest, axis=2).astype(jnp.uint8)
