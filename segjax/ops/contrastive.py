"""Supervised contrastive losses over sampled pixel embeddings, in memory linear in their number.

Only a block of anchors meets all keys at a time. Value and gradient come from the same pass (a custom VJP that knows the weights of the
sum beforehand), so the N x M similarities are made once and never kept. Where the loss is linear in its positives they are summed a class.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

FORMS = ("all", "negatives")
BLOCK = 256
"""Anchors that meet all keys at once: 256 x 32k similarities are 32 MB."""


def supervised_contrastive(
    anchors: Array,
    keys: Array,
    anchor_label: Array,
    key_label: Array,
    *,
    num_classes: int,
    temperature: float = 0.07,
    base_temperature: float | None = None,
    form: str = "all",
    itself: Array | None = None,
    over: str = "anchors",
    block: int = BLOCK,
) -> tuple[Array, Array]:
    """Sum of the anchors' losses and what to divide it by, float32 scalars: a global mean is sum / count, summed over a sharded batch.

    anchors [N,D] and keys [M,D] are L2-normalised; anchor_label [N] and key_label [M] are ids; ids outside 0..num_classes-1 (255) take no
    part. s_ij = a_i . k_j / temperature, P(i) = keys of anchor i's class.
    form "all": mean over P(i) of -log(exp s_ip / sum_j exp s_ij) (SupCon, Khosla et al. 2020, equation 2).
    form "negatives": mean over P(i) of -log(exp s_ip / (exp s_ip + sum over keys of other classes)) (Wang et al. 2021, equation 3; also
        zgerem/UDA contrastiveloss.py with its row maximum kept a column, which the released code forgets).
    itself: int [N], the key that is the anchor itself and so neither positive nor negative (SupCon's A(i)); None when keys are another
        view, where the same position is a positive. base_temperature: the loss is multiplied by temperature / base (the references' .07).
    over: "anchors" divides by all anchors that take part, as the references do, "positives" by those that have a positive key. An anchor
        without one adds 0 either way, an anchor without negatives stays finite.
    """
    if form not in FORMS or over not in ("anchors", "positives"):
        raise ValueError(f"form={form!r} over={over!r}: expected a form of {FORMS} and over='anchors' or 'positives'")
    anchors, keys = anchors.astype(jnp.float32), keys.astype(jnp.float32)
    anchor_label, key_label = anchor_label.astype(jnp.int32), key_label.astype(jnp.int32)  # uint8 has no -1
    takes_part = (anchor_label >= 0) & (anchor_label < num_classes)
    key_class = jnp.where((key_label >= 0) & (key_label < num_classes), key_label, -1)
    anchor_class = jnp.where(takes_part, anchor_label, -2)
    itself = jnp.full(anchors.shape[0], -1, jnp.int32) if itself is None else itself.astype(jnp.int32)
    positives = _positive_count(anchor_class, key_class, itself, num_classes)
    weight = (takes_part & (positives > 0)).astype(jnp.float32)
    total = _sum(anchors, keys, anchor_class, key_class, itself, weight, positives, 1.0 / temperature, form, block, num_classes)
    count = jnp.sum(takes_part if over == "anchors" else weight, dtype=jnp.float32)
    return total * (temperature / base_temperature if base_temperature else 1.0), count


def _one_hot(label: Array, num_classes: int) -> Array:
    return (label[:, None] == jnp.arange(num_classes)).astype(jnp.float32)


def _own_key(itself: Array, anchor_class: Array, key_class: Array) -> Array:
    """Whether the key `itself` exists and is of the anchor's class, bool [N]."""
    return (itself >= 0) & (key_class[jnp.maximum(itself, 0)] == anchor_class)


def _positive_count(anchor_class, key_class, itself, num_classes) -> Array:
    of_class = _one_hot(key_class, num_classes).sum(0)
    found = jnp.where(anchor_class >= 0, of_class[jnp.maximum(anchor_class, 0)], 0.0)
    return found - _own_key(itself, anchor_class, key_class)


def _sum(anchors, keys, anchor_class, key_class, itself, weight, positives, sharpness, form, block, num_classes):
    """Sum over anchors of weight x loss. Positives of "all" are linear in the keys: one sum a class, outside the blocks."""
    share = weight / jnp.maximum(positives, 1.0)
    total: Any = _blocks(anchors, keys, anchor_class, key_class, itself, weight, share, sharpness, form, block)
    if form == "negatives":
        return total
    sums = _one_hot(key_class, num_classes).T @ keys
    similar = jnp.sum(anchors * sums[jnp.maximum(anchor_class, 0)], -1)
    own = jnp.sum(anchors * keys[jnp.maximum(itself, 0)], -1) * _own_key(itself, anchor_class, key_class)
    return total - sharpness * jnp.sum(share * (similar - own))


@partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _blocks(anchors, keys, anchor_class, key_class, itself, weight, share, sharpness, form, block):
    value = partial(_block, keys, key_class, sharpness=sharpness, form=form, gradient=False)
    rows = _deal(anchors, anchor_class, itself, weight, share, block=block)
    return jnp.sum(lax.map(lambda row: value(*row)[0], rows))


def _blocks_fwd(anchors, keys, anchor_class, key_class, itself, weight, share, sharpness, form, block):
    rows = _deal(anchors, anchor_class, itself, weight, share, block=block)
    # One partial sum of the keys' gradient for each device that holds anchors: they meet once, after the loop, not in every turn of it.
    parts = max(jax.sharding.get_abstract_mesh().size, 1)
    parts = parts if rows[0].shape[1] % parts == 0 else 1

    def turn(dkeys, row):
        loss, slope = _block(keys, key_class, *row, sharpness=sharpness, form=form, gradient=True)
        split = lambda x: x.reshape(parts, -1, x.shape[-1])
        return dkeys + jnp.einsum("pbm,pbd->pmd", split(slope), split(row[0])), (loss, slope @ keys)

    dkeys, (loss, danchors) = lax.scan(turn, jnp.zeros((parts, *keys.shape), jnp.float32), rows)
    danchors = danchors.swapaxes(0, 1).reshape(-1, anchors.shape[-1])[: anchors.shape[0]]
    return jnp.sum(loss), (danchors, dkeys.sum(0))


def _blocks_bwd(sharpness, form, block, saved, cotangent):
    danchors, dkeys = saved
    return (cotangent * danchors, cotangent * dkeys, None, None, None, None, None)


_blocks.defvjp(_blocks_fwd, _blocks_bwd)


def _deal(*arrays: Array, block: int) -> tuple[Array, ...]:
    """Arrays [N,...] as [turns, block, ...], filled up with zeros (weight 0). Turn t takes rows t, t + turns, ...: rows that are sharded
    over devices stay where they are, and every device has its share of every turn."""
    n = arrays[0].shape[0]
    block = min(block, n)
    turns = -(-n // block)
    pad = lambda x: jnp.pad(x, ((0, block * turns - n),) + ((0, 0),) * (x.ndim - 1))
    return tuple(pad(x).reshape(block, turns, *x.shape[1:]).swapaxes(0, 1) for x in arrays)


def _block(keys, key_class, anchors, anchor_class, itself, weight, share, *, sharpness, form, gradient):
    """Loss of one block of anchors and, with `gradient`, its derivative by the products a_i . k_j [b,M]."""
    similarity = sharpness * (anchors @ keys.T)
    other = jnp.arange(keys.shape[0]) != itself[:, None]
    valid = key_class >= 0
    same = anchor_class[:, None] == key_class
    against = (other & valid) if form == "all" else (valid & ~same)
    logits = jnp.where(against, similarity, -jnp.inf)
    highest = jnp.max(logits, -1, keepdims=True)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)  # no key at all to stand against
    odds = jnp.exp(logits - highest)
    total = odds.sum(-1, keepdims=True)
    some = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, jnp.log(some) + highest, -jnp.inf)
    if form == "all":
        loss = jnp.sum(jnp.where(weight > 0, weight * jnp.where(total > 0, jnp.log(some) + highest, 0.0)[:, 0], 0.0))
        return loss, sharpness * weight[:, None] * odds / some if gradient else None
    positive = same & other
    gap = jnp.where(positive, lse - similarity, -jnp.inf)
    loss = jnp.sum(share * jnp.sum(jnp.where(positive, jax.nn.softplus(gap), 0.0), -1))
    if not gradient:
        return loss, None
    pull = share[:, None] * jax.nn.sigmoid(gap)  # 0 off the positives
    return loss, sharpness * (pull.sum(-1, keepdims=True) * odds / some - pull)
