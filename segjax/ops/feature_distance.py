"""DAFormer's feature distance: where the source shows things, the encoder stays near the features that it had from ImageNet."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import IGNORE, Array

CITYSCAPES_THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Traffic light, traffic sign, and all from person to bicycle."""


def downscale_label(label: Array, factor: int, *, num_classes: int, min_ratio: float = 0.75) -> Array:
    """The class that fills at least min_ratio of each factor x factor square, else 255: [B,H,W] -> uint8 [B, H//factor, W//factor].

    255 takes part as a class of its own; of equal shares the lower class leads. Rows and columns beyond the last whole square are left
    out. Source: downscale_label_ratio of lhoyer/DAFormer, mmseg/utils/utils.py.
    """
    batch, height, width = label.shape
    rows, columns = height // factor, width // factor
    if factor < 1 or rows < 1 or columns < 1:
        raise ConfigError(f"factor={factor} on a {height}x{width} label: expected 1 to its shorter side")
    label = jnp.where(label < num_classes, label, num_classes)[:, : rows * factor, : columns * factor]
    squares = label.reshape(batch, rows, factor, columns, factor, 1)
    count = jnp.sum(squares == jnp.arange(num_classes + 1), (2, 4), dtype=jnp.int32)
    winner, most = jnp.argmax(count, -1), jnp.max(count, -1)
    # as a float32 share, which is what the original compares
    sure = (winner < num_classes) & (most.astype(jnp.float32) / factor**2 >= min_ratio)
    return jnp.where(sure, winner, IGNORE).astype(jnp.uint8)


def feature_distance(
    features: Array,
    reference: Array,
    label: Array,
    *,
    num_classes: int,
    classes: Sequence[int] | None = CITYSCAPES_THINGS,
    min_ratio: float = 0.75,
) -> tuple[Array, Array]:
    """Euclidean distance between two encoders' last features [B,h,w,D], where `label` [B,H,W] shows one of `classes`: (sum, positions).

    The loss is sum / positions (0 / 0 where the batch shows none: the callers' guarded means give 0), DAFormer's with weight 0.005.
    label comes down by `downscale_label` with factor W // w. classes None: every position, whatever the label. No gradient into
    reference, and none where the features are equal. Source: DACS.calc_feat_dist and masked_feat_dist in mmseg/models/uda/dacs.py,
    whose mean over no position is NaN.
    """
    if features.shape != reference.shape:
        raise ConfigError(f"features {features.shape} and reference {reference.shape}: expected the same network's, of one shape")
    size = features.shape[1], features.shape[2]
    mask = thing_mask(label, size, classes, num_classes=num_classes, min_ratio=min_ratio)
    change = features.astype(jnp.float32) - lax.stop_gradient(reference).astype(jnp.float32)
    square = jnp.sum(change * change, -1)
    there = mask & (square > 0)
    distance = jnp.where(there, jnp.sqrt(jnp.where(there, square, 1)), 0)
    return jnp.sum(distance), jnp.sum(mask, dtype=jnp.float32)


def thing_mask(label: Array, size: tuple[int, int], classes: Sequence[int] | None, *, num_classes: int, min_ratio: float = 0.75) -> Array:
    """Which positions of a feature map of `size` count: bool [B,*size]. Raises ConfigError where the sizes do not divide alike."""
    if classes is None:
        return jnp.ones((label.shape[0], *size), bool)
    factor = label.shape[2] // size[1]
    small = downscale_label(label, factor, num_classes=num_classes, min_ratio=min_ratio)
    if small.shape[1:] != tuple(size):
        raise ConfigError(
            f"label {label.shape[1:]} by {factor} is {small.shape[1:]}, features are {tuple(size)}: choose a crop that divides"
        )
    return jnp.any(small[..., None] == jnp.asarray(tuple(classes), small.dtype), -1)
