"""Several views of each image in one pass of a network: as one batch, as views again, and the distillation between two of them as terms.

Views of an image lie side by side, [B,views,...] and in one batch [B * views,...]: a batch that is sharded over devices stays where it is.
"""

import itertools
import math

import jax.numpy as jnp

from segjax.ops.distill import symmetric_distillation
from segjax.typing import Array, Terms


def one_batch(views: Array) -> Array:
    """[B,n,...] -> [B * n,...]."""
    return views.reshape(-1, *views.shape[2:])


def logits_of(outputs: dict[str, Array]) -> dict[str, Array]:
    """The heads of a network's outputs: "logits" and, from a two-level network, "aux_logits"."""
    return {name: outputs[name] for name in ("logits", "aux_logits") if name in outputs}


def by_view(outputs: dict[str, Array], count: int) -> dict[str, Array]:
    """What a network makes of `one_batch` of `count` views, each value as [B,count,...]."""
    return {name: value.reshape(-1, count, *value.shape[1:]) for name, value in outputs.items()}


def view(outputs: dict[str, Array], number: int) -> dict[str, Array]:
    """One view's part of `by_view`, each value [B,...]."""
    return {name: value[:, number] for name, value in outputs.items()}


def side_by_side(*parts: Array) -> Array:
    """Batches [B_i,...] as one [sum of B_i,...], in which the first of n equal blocks of rows holds the first n-th of each part, and so on.

    n is the greatest common divisor of the B_i: a batch that is sharded over n devices, or a divisor of it, stays where it is.
    """
    blocks = math.gcd(*(part.shape[0] for part in parts))
    grouped = [part.reshape(blocks, -1, *part.shape[1:]) for part in parts]
    return one_batch(jnp.concatenate(grouped, 1))


def apart(batch: Array, counts: tuple[int, ...]) -> list[Array]:
    """The parts of `side_by_side`, of `counts` rows."""
    blocks = math.gcd(*counts)
    grouped = batch.reshape(blocks, -1, *batch.shape[1:])
    cuts = list(itertools.accumulate(count // blocks for count in counts[:-1]))
    return [one_batch(part) for part in jnp.split(grouped, cuts, 1)]


def distillation_terms(
    student: dict[str, Array],
    teacher: dict[str, Array],
    size: tuple[int, int],
    *,
    align_corners: bool,
    reverse_weight: float = 0.5,
    aux_weight: float = 0.1,
    weight: float = 1.0,
) -> Terms:
    """`symmetric_distillation` of every head, {"loss/distill": (sum, weight)} and "loss/distill_aux" with `aux_weight` on top.

    student, teacher: "logits" [B,2,h,w,K], the clean view first, and of a two-level network "aux_logits". All pixels of `size` count,
    ignored or not. Source: DiGA's loss.py, and train_DiGA_semiseg_warm_up.py for the auxiliary head (0.1).
    """
    terms = {}
    for head, name, share in (("logits", "loss/distill", 1.0), ("aux_logits", "loss/distill_aux", aux_weight)):
        if head in student:
            learns, teaches = ((outputs[head][:, 0], outputs[head][:, 1]) for outputs in (student, teacher))
            total, count = symmetric_distillation(learns, teaches, size, reverse_weight=reverse_weight, align_corners=align_corners)
            terms[name] = (weight * share * total, count)
    return terms
