"""Pixels for pixel contrast as Wang et al. draw them: as many of every class, half of them where the network is wrong."""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import IGNORE, Array, Key


def class_views(
    key: Key, label: Array, prediction: Array, num_classes: int, *, views: int = 100, samples: int = 1024
) -> tuple[Array, Array]:
    """Positions int32 [B, num_classes * views] (row * W + column) and their labels uint8, 255 in slots that stay empty.

    label and prediction int [B,H,W]. A class takes part in an image that has more than `views` pixels of it; of each such class and image
    n = min(samples // their number in the batch, views) pixels are drawn without replacement: n // 2 hard ones (prediction != label), the
    others easy, and where there are too few of one kind, more of the other. Slots num_classes * views are static: what is not drawn is 255
    and takes no part in a loss.
    Source: Exploring Cross-Image Pixel Contrast, ICCV 2021, and tfzhou/ContrastiveSeg lib/loss/loss_contrast.py, _hard_anchor_sampling.
    Different from it: the number of classes is that of the whole batch, not of one GPU's part of it, and a batch without any is no error.
    """
    batch = len(label)
    label, prediction = (x.reshape(batch, -1).astype(jnp.int32) for x in (label, prediction))
    known = (label >= 0) & (label < num_classes)
    pool = jnp.where(known, 2 * label + (label == prediction), 2 * num_classes)
    # Pools one after the other, each shuffled: the first of a pool are a draw without replacement.
    place = jnp.broadcast_to(jnp.arange(label.shape[1], dtype=jnp.int32), label.shape)
    pool, _, order = lax.sort((pool, jax.random.bits(key, label.shape), place), num_keys=2)
    start = jax.vmap(lambda sorted_pool: jnp.searchsorted(sorted_pool, jnp.arange(2 * num_classes + 1)))(pool)
    hard, easy = (jnp.diff(start)[:, kind::2, None] for kind in (0, 1))
    taken = hard + easy > views
    n = jnp.minimum(samples // jnp.maximum(jnp.sum(taken), 1), views)
    hard_kept = jnp.clip(n // 2, n - easy, hard)
    slot = jnp.arange(views)
    first = jnp.where(slot < hard_kept, start[:, :-1:2, None], start[:, 1:-1:2, None] - hard_kept)
    index = jnp.clip(first + slot, 0, label.shape[1] - 1).reshape(batch, -1)
    found = jnp.where(taken & (slot < n), jnp.arange(num_classes)[:, None], IGNORE)
    return jnp.take_along_axis(order, index, 1), found.reshape(batch, -1).astype(jnp.uint8)
