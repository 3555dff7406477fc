"""Supervised contrastive losses over sampled pixel embeddings, in memory linear in their number.

Only a block of anchors meets all keys at a time. Value and gradient come from the same pass (a custom VJP that knows the weights of the
sum beforehand), so the N x M similarities are made once, each with one exp, and never kept. Where the loss is linear in its positives they
are summed a class.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from segjax.typing import Array

FORMS = ("all", "negatives")
BLOCK = 256
"""Anchors that meet all keys at once: 256 x 32k similarities are 32 MB."""
FAR = 60.0
"""exp of no more than this either way: a positive that far below the highest negative costs its distance, one that far above nothing."""

PRECISIONS = ("highest", "high")


class _How(NamedTuple):
    """What stays the same whatever the numbers are. sharpness: 1 / temperature. spread: a block lies over the whole mesh."""

    sharpness: float
    form: str
    block: int
    spread: bool
    precision: str

    def product(self, left: Array, right: Array) -> Array:
        return jnp.matmul(left, right, precision=self.precision)


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
    precision: str = "highest",
) -> tuple[Array, Array]:
    """Sum of the anchors' losses and what to divide it by, float32 scalars: a global mean is sum / count, summed over a sharded batch.

    anchors [N,D] and keys [M,D] are L2-normalised; anchor_label [N] and key_label [M] are ids; ids outside 0..num_classes-1 (255) take no
    part. s_ij = a_i . k_j / temperature, P(i) = keys of anchor i's class. On a mesh every device takes its share of the anchors against all
    keys, which are gathered once. With one more dimension in front of all four, each of its rows is a problem by itself, whole on a device.
    form "all": mean over P(i) of -log(exp s_ip / sum_j exp s_ij) (SupCon, Khosla et al. 2020, equation 2).
    form "negatives": mean over P(i) of -log(exp s_ip / (exp s_ip + sum over keys of other classes)) (Wang et al. 2021, equation 3; also
        zgerem/UDA contrastiveloss.py with its row maximum kept a column, which the released code forgets).
    itself: int [N], the key that is the anchor itself and so neither positive nor negative (SupCon's A(i)); None when keys are another
        view, where the same position is a positive. base_temperature: the loss is multiplied by temperature / base (the references' .07).
    over: "anchors" divides by all anchors that take part, as the references do, "positives" by those that have a positive key. An anchor
        without one adds 0 either way, an anchor without negatives stays finite.
    precision: of the products. "highest" is float32's own, for a low temperature multiplies what a product loses; "high" is TensorFloat-32
        on a GPU and three bfloat16 passes on a TPU (torch: `set_float32_matmul_precision("high")`); no difference on a CPU.
    """
    if form not in FORMS or over not in ("anchors", "positives"):
        raise ValueError(f"form={form!r} over={over!r}: expected a form of {FORMS} and over='anchors' or 'positives'")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
    anchors, keys = anchors.astype(jnp.float32), keys.astype(jnp.float32)
    anchor_label, key_label = anchor_label.astype(jnp.int32), key_label.astype(jnp.int32)  # uint8 has no -1
    takes_part = (anchor_label >= 0) & (anchor_label < num_classes)
    key_class = jnp.where((key_label >= 0) & (key_label < num_classes), key_label, -1)
    anchor_class = jnp.where(takes_part, anchor_label, -2)
    how = _How(1.0 / temperature, form, block, anchors.ndim == 2, precision)
    sum_of = partial(_sum, num_classes=num_classes, how=how)
    sum_of = sum_of if anchors.ndim == 2 else jax.vmap(sum_of)
    total, positive = sum_of(anchors, keys, anchor_class, key_class, itself)
    count = jnp.sum(takes_part if over == "anchors" else positive, dtype=jnp.float32)
    return jnp.sum(total) * (temperature / base_temperature if base_temperature else 1.0), count


def _one_hot(label: Array, num_classes: int) -> Array:
    return (label[:, None] == jnp.arange(num_classes)).astype(jnp.float32)


def _own_key(itself: Array, anchor_class: Array, key_class: Array) -> Array:
    """Whether the key `itself` exists and is of the anchor's class, bool [N]."""
    return (itself >= 0) & (key_class[jnp.maximum(itself, 0)] == anchor_class)


def _positive_count(anchor_class, key_class, itself, num_classes) -> Array:
    of_class = _one_hot(key_class, num_classes).sum(0)
    found = jnp.where(anchor_class >= 0, of_class[jnp.maximum(anchor_class, 0)], 0.0)
    return found if itself is None else found - _own_key(itself, anchor_class, key_class)


def _sum(anchors, keys, anchor_class, key_class, itself, *, num_classes: int, how: _How) -> tuple[Array, Array]:
    """Sum over the anchors of the mean over their positives, and whether each has one, bool [N]."""
    positives = _positive_count(anchor_class, key_class, itself, num_classes)
    weight = (positives > 0).astype(jnp.float32)
    share = weight / jnp.maximum(positives, 1.0)
    total: Any = _blocks(anchors, keys, anchor_class, key_class, itself, weight, share, how)
    if how.form == "negatives":
        return total, positives > 0
    # here positives are linear in the keys: one sum a class, outside the blocks
    sums = how.product(_one_hot(key_class, num_classes).T, keys)
    similar = jnp.sum(anchors * how.product(_one_hot(anchor_class, num_classes), sums), -1)
    if itself is not None:
        similar -= jnp.sum(anchors * keys[jnp.maximum(itself, 0)], -1) * _own_key(itself, anchor_class, key_class)
    return total - how.sharpness * jnp.sum(share * similar), positives > 0


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _blocks(anchors, keys, anchor_class, key_class, itself, weight, share, how):
    keys, key_class, rows, _ = _deal(keys, key_class, (anchors, anchor_class, itself, weight, share), how)
    return jnp.sum(lax.map(lambda row: _OF_FORM[how.form](how, keys, key_class, *row)[0], rows))


def _blocks_fwd(anchors, keys, anchor_class, key_class, itself, weight, share, how):
    keys, key_class, rows, parts = _deal(keys, key_class, (anchors, anchor_class, itself, weight, share), how)
    split = lambda x: x.reshape(parts, -1, x.shape[-1])

    def turn(dkeys, row):
        loss, scale, slope = _OF_FORM[how.form](how, keys, key_class, *row)
        # [D,M]: a CPU is four times as fast at this product as at its transpose
        dkeys += jnp.einsum("pbd,pbm->pdm", split(scale * row[0]), split(slope), precision=how.precision)
        return dkeys, (loss, scale * how.product(slope, keys))

    # One partial sum of the keys' gradient for each device: they meet once, after the loop, not in every turn of it.
    dkeys = _placed(jnp.zeros((parts, *keys.T.shape), jnp.float32), parts, 0)
    dkeys, (loss, danchors) = lax.scan(turn, dkeys, rows)
    danchors = danchors.swapaxes(0, 1).reshape(-1, anchors.shape[-1])[: anchors.shape[0]]
    return jnp.sum(loss), (danchors, dkeys.sum(0).T)


def _blocks_bwd(how, saved, cotangent):
    danchors, dkeys = saved
    return (cotangent * danchors, cotangent * dkeys, None, None, None, None, None)


_blocks.defvjp(_blocks_fwd, _blocks_bwd)


def _deal(keys: Array, key_class: Array, rows: tuple[Any, ...], how: _How) -> tuple[Array, Array, Any, int]:
    """The keys and their classes on every device, rows [N,...] as [turns, block, ...], and over how many devices a block is spread.

    Rows are filled up with zeros (weight 0). Turn t takes rows t, t + turns, ...: rows that are sharded stay where they are.
    """
    mesh, n = jax.sharding.get_abstract_mesh(), len(rows[0])
    parts = mesh.size if how.spread and mesh.size > 1 else 1
    block = -(-min(how.block, n) // parts) * parts
    turns = -(-n // block)
    pad = lambda x: jnp.pad(x, ((0, block * turns - n),) + ((0, 0),) * (x.ndim - 1))
    deal = lambda x: _placed(pad(x).reshape(block, turns, *x.shape[1:]).swapaxes(0, 1), parts, 1)
    return _placed(keys, parts), _placed(key_class, parts), jax.tree.map(deal, rows), parts


def _placed(x: Array, parts: int, axis: int | None = None) -> Array:
    """x with `axis` split over the whole mesh, or a copy on every device."""
    if parts == 1:
        return x
    spec = () if axis is None else (*[None] * axis, jax.sharding.get_abstract_mesh().axis_names)
    return lax.with_sharding_constraint(x, PartitionSpec(*spec))


def _highest(similarity: Array, against: Array) -> Array:
    """The highest similarity [b,1] to the keys of the mask `against`, 0 where it is empty."""
    highest = jnp.max(jnp.where(against, similarity, -jnp.inf), -1, keepdims=True)
    return jnp.where(jnp.isfinite(highest), highest, 0.0)


def _block_of_all(how, keys, key_class, anchors, anchor_class, itself, weight, share) -> tuple[Array, Array, Array]:
    """Losses [b] of anchors without their positives' part; scale [b,1] and slope [b,M]: their product is the derivative by a_i . k_j."""
    similarity = how.sharpness * how.product(anchors, keys.T)
    against = key_class >= 0 if itself is None else (key_class >= 0) & (jnp.arange(len(keys)) != itself[:, None])
    highest = _highest(similarity, against)
    odds = jnp.exp(jnp.where(against, similarity, -jnp.inf) - highest)
    total = odds.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)  # nothing to stand against: the loss is 0
    return weight * (jnp.log(total) + highest)[:, 0], how.sharpness * weight[:, None] / total, odds


def _block_of_negatives(how, keys, key_class, anchors, anchor_class, itself, weight, share) -> tuple[Array, Array, Array]:
    """Losses [b] of anchors; scale [b,1] and slope [b,M] as above. o_ij = exp(s_ij - the highest negative), t = their sum over i's
    negatives: a positive costs -log(o / (o + t)) and pulls with t / (o + t)."""
    similarity = how.sharpness * how.product(anchors, keys.T)
    same = anchor_class[:, None] == key_class
    positive = same if itself is None else same & (jnp.arange(len(keys)) != itself[:, None])
    negative = (key_class >= 0) & ~same
    highest = _highest(similarity, negative)
    away = similarity - highest
    odds = jnp.exp(jnp.clip(away, -FAR, FAR))
    total = jnp.sum(jnp.where(negative, odds, 0.0), -1, keepdims=True)
    against = odds + total
    near = away > -FAR
    cost = -jnp.log(jnp.where(near, odds, 1.0) / against) - jnp.where(near, 0.0, away)
    share = jnp.where(total[:, 0] > 0, share, 0.0)  # nothing to stand against: the loss is 0
    pull = jnp.where(positive, total / against, 0.0)
    push = pull.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    loss = share * jnp.sum(jnp.where(positive, cost, 0.0), -1)
    return loss, how.sharpness * share[:, None], jnp.where(negative, push * odds, -pull)


_OF_FORM = {"all": _block_of_all, "negatives": _block_of_negatives}
