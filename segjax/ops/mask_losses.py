"""The losses of a mask-classification network (Mask2Former, Cheng et al. 2022, arXiv 2112.01527; CLOUDS trains with them unchanged).

Every prediction set (before the first decoder layer and after each) is matched to the targets by itself, all of them at once on the
device, and scored by itself: cross-entropy of every query's class, and BCE and dice of the matched masks at random points, most of them
where the mask is least sure. Source: facebookresearch/Mask2Former mask2former/modeling/{matcher,criterion}.py. There the class loss is
a mean over one worker's queries and then over the workers; here it is one mean over all queries of the batch, as is the number of masks.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.matching import assigned, match
from segjax.ops.point_samples import at_channel_points, at_points, at_shared_points
from segjax.typing import Array, Key, Terms

POINTS, OVERSAMPLE, IMPORTANT = 112 * 112, 3.0, 0.75

Ignored: TypeAlias = Literal["negative", "left_out"]
"""What pixels in no target mask (label 255, or dropped from a pseudo-label) are: outside of every matched mask, as released, or nothing."""


class Targets(NamedTuple):
    """masks bool [B,H,W,K]; classes int32 [B,K], -1 for a target that is not there."""

    masks: Array
    classes: Array


class Weights(NamedTuple):
    """Of the three losses, and of the same three in the cost of a match. no_object: of a query without a target in the class loss."""

    category: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1


WEIGHTS = Weights()


class PointChoice(NamedTuple):
    """Where one set's losses look, in shares (`ops.point_samples`). match [B,P,2], of which all masks of an image share; candidates
    [B,K,R,2], of which the least sure are taken; others [B,K,E,2], which are taken anyway."""

    match: Array
    candidates: Array
    others: Array


def semantic_targets(label: Array, num_classes: int) -> Targets:
    """One mask for every class that an image has. label int [B,H,W]; ids outside 0..num_classes-1 (255) are in no mask."""
    masks = label[..., None] == jnp.arange(num_classes, dtype=label.dtype)
    return Targets(masks, jnp.where(masks.any((1, 2)), jnp.arange(num_classes), -1).astype(jnp.int32))


def draw_points(key: Key, sets: int, batch: int, targets: int, points: int = POINTS) -> PointChoice:
    """The points of `sets` prediction sets as `mask_losses` draws them from the key, each array with a leading axis [sets]."""
    return jax.vmap(lambda key: _drawn(key, batch, targets, points))(jax.random.split(key, sets))


def _drawn(key: Key, batch: int, targets: int, points: int) -> PointChoice:
    """Uniform ones of a single set."""
    counts = int(OVERSAMPLE * points), points - int(IMPORTANT * points)
    shapes = (batch, points), *((batch, targets, count) for count in counts)
    keys = jax.random.split(key, len(shapes))
    return PointChoice(*(jax.random.uniform(key, (*shape, 2)) for key, shape in zip(keys, shapes, strict=True)))


def mask_losses(
    class_logits: Array,
    mask_logits: Array,
    targets: Targets,
    chosen: Key | PointChoice,
    *,
    weights: Weights = WEIGHTS,
    points: int = POINTS,
    ignored: Ignored = "negative",
) -> Terms:
    """Terms loss/class, loss/mask and loss/dice, weighted, each the sum over S prediction sets; their sum is the training loss.

    class_logits float [S,B,Q,C+1], the last class "no object"; mask_logits float [S,B,h,w,Q] at a resolution of their own.
    chosen: a key, with which `points` a mask are drawn, or the points of every set themselves. Differentiable in both logits; matching and
    the choice of points have no gradient. With ignored="left_out" a point counts by the share of its surroundings that is in some target
    mask, and takes its target from that share; the least sure points are chosen among those that count. ConfigError: another `ignored`.
    """
    if ignored not in ("negative", "left_out"):
        raise ConfigError(f"ignored={ignored!r}: expected 'negative' (as released) or 'left_out'")
    sets, batch, queries = class_logits.shape[:3]
    count = targets.classes.shape[1]
    known = targets.masks.any(-1, keepdims=True) if ignored == "left_out" else None
    if isinstance(chosen, PointChoice):
        drawn, points_of = chosen, lambda choice: choice
    else:
        drawn = jax.random.split(chosen, sets)
        points_of = lambda key: _drawn(key, batch, count, points)  # where they are used: those of all sets never exist together

    def cost(one: Any) -> Array:
        class_logits, mask_logits, choice = one
        return match_cost(class_logits, mask_logits, targets, points_of(choice).match, known, weights)

    stopped = lax.stop_gradient((class_logits, mask_logits))
    query = match(lax.map(cost, (*stopped, drawn)), targets.classes >= 0)

    def losses(one: Any) -> tuple[Array, Array]:
        mask_logits, query, choice = one
        choice = points_of(choice)
        return matched_losses(mask_logits, query, targets, choice.candidates, choice.others, known)

    bce, dice = (x.sum() for x in lax.map(losses, (mask_logits, query, drawn)))
    masks = jnp.maximum(jnp.sum(targets.classes >= 0), 1).astype(jnp.float32)
    total, weight = class_loss(class_logits, query, targets.classes, weights.no_object)
    return {
        "loss/class": (weights.category * total, weight / sets),
        "loss/mask": (weights.mask * bce, masks),
        "loss/dice": (weights.dice * dice, masks),
    }


def class_loss(class_logits: Array, query: Array, classes: Array, no_object: float) -> tuple[Array, Array]:
    """(sum of weight * cross-entropy, sum of weight) over all queries of class_logits [...,Q,C+1]; one without a target should say
    "no object" and weighs `no_object`. query [...,K] (`match`), classes int [...,K] of the targets."""
    queries, none = class_logits.shape[-2], class_logits.shape[-1] - 1
    target = assigned(query, queries)
    classes = jnp.broadcast_to(classes, query.shape)
    wanted = jnp.where(target < 0, none, jnp.take_along_axis(classes, jnp.maximum(target, 0), -1))
    log_share = jax.nn.log_softmax(class_logits.astype(jnp.float32))
    each = -jnp.take_along_axis(log_share, wanted[..., None], -1)[..., 0]
    weight = jnp.where(target < 0, jnp.float32(no_object), 1.0)
    return jnp.sum(weight * each), jnp.sum(weight)


def match_cost(class_logits: Array, mask_logits: Array, targets: Targets, points: Array, known: Array | None, weights: Weights) -> Array:
    """The price of every query for every target of one set, float32 [B,Q,K]: weights of -probability, mean BCE, dice at `points` [B,P,2].

    known: bool [B,H,W,1], where targets are known (default: everywhere).
    """
    share = jax.nn.softmax(class_logits.astype(jnp.float32))
    index = jnp.maximum(targets.classes, 0)[:, None, :]
    price = -weights.category * jnp.take_along_axis(share, index, -1)
    logits = at_shared_points(mask_logits, points)
    target, weight = _known_target(at_shared_points(targets.masks, points), None if known is None else at_shared_points(known, points))
    inside, outside = target * weight, (1 - target) * weight
    product = lambda a, b: jnp.einsum("bpq,bpk->bqk", a, b, precision=lax.Precision.HIGHEST)
    total = jnp.maximum(weight.sum(1), 1e-6)[:, None]
    bce = (product(jax.nn.softplus(-logits), inside) + product(jax.nn.softplus(logits), outside)) / total
    probability = jax.nn.sigmoid(logits)
    both = product(probability, inside)
    sums = product(probability, weight) + inside.sum(1)[:, None]
    return price + weights.mask * bce + weights.dice * (1 - (2 * both + 1) / (sums + 1))


def matched_losses(
    mask_logits: Array, query: Array, targets: Targets, candidates: Array, others: Array, known: Array | None
) -> tuple[Array, Array]:
    """(sum of BCE, sum of dice) over the matched masks of one set. mask_logits [B,h,w,Q], query [B,K]; points as in PointChoice."""
    batch, height, width, queries = mask_logits.shape
    targets_each = query.shape[1]
    # a product with zeros and ones: its gradient is one, too, where a gather's is a scatter
    pick = (query[..., None] == jnp.arange(queries)).astype(jnp.float32)
    maps = jnp.einsum("bhwq,bkq->bkhw", mask_logits.astype(jnp.float32), pick, precision=lax.Precision.HIGHEST)
    maps = maps.reshape(batch * targets_each, height, width)
    points = loss_points(maps, candidates, others, known)
    logits = at_points(maps, points.reshape(len(maps), -1, 2)).reshape(points.shape[:3])
    seen = None if known is None else at_channel_points(jnp.broadcast_to(known, targets.masks.shape), points)
    target, weight = _known_target(at_channel_points(targets.masks, points), seen)
    bce, dice = point_losses(logits, target, weight)
    there = query >= 0
    return jnp.sum(jnp.where(there, bce, 0.0)), jnp.sum(jnp.where(there, dice, 0.0))


def loss_points(maps: Array, candidates: Array, others: Array, known: Array | None) -> Array:
    """Where the losses look, [B,K,P,2]: of the candidates [B,K,3P,2] the P - E whose logits in maps [B*K,h,w] are closest to 0, least sure
    first, then the others [B,K,E,2]."""
    count = round(candidates.shape[2] / OVERSAMPLE) - others.shape[2]
    logits = at_points(lax.stop_gradient(maps), candidates.reshape(len(maps), -1, 2)).reshape(candidates.shape[:3])
    doubt = -jnp.abs(logits)
    if known is not None:
        seen = at_channel_points(jnp.broadcast_to(known, (*known.shape[:3], candidates.shape[1])), candidates)
        doubt = jnp.where(seen > 0, doubt, -jnp.inf)
    index = lax.top_k(doubt, count)[1]
    return jnp.concatenate([jnp.take_along_axis(candidates, index[..., None], 2), others], 2)


@jax.checkpoint
def point_losses(logits: Array, target: Array, weight: Array) -> tuple[Array, Array]:
    """(mean BCE, dice with 1 added above and below) over the last axis, each [...]. target in 0..1, weight of each point."""
    weight = jnp.broadcast_to(weight, logits.shape)
    each = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    bce = jnp.sum(each * weight, -1) / jnp.maximum(jnp.sum(weight, -1), 1e-6)
    probability = jax.nn.sigmoid(logits)
    both, sums = jnp.sum(weight * probability * target, -1), jnp.sum(weight * (probability + target), -1)
    return bce, 1 - (2 * both + 1) / (sums + 1)


def _known_target(target: Array, seen: Array | None) -> tuple[Array, Array]:
    """(target over its known surroundings alone, weight), both of the sampled masks' shape; seen: the known share around each point."""
    if seen is None:
        return target, jnp.ones_like(target)
    seen = jnp.broadcast_to(seen, target.shape)
    return jnp.minimum(target / jnp.maximum(seen, 1e-6), 1.0), seen
