"""Soft targets: the cross-entropy between a teacher's class distribution and a student's, pixel by pixel and in both directions.

H(p_T, p_S) = KL(p_T || p_S) + H(p_T): as the teacher gets no gradient, learning from either is the same. For a temperature T divide
both networks' logits by T before (and multiply the loss by T^2, should its gradient keep its size).
"""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.row_blocks import Chunks, upsampled_sum
from segjax.typing import Array


def soft_cross_entropy(student: Array, teacher: Array) -> Array:
    """-sum_k softmax(teacher)_k log softmax(student)_k in nats: logits [...,K] -> float32 [...]. No gradient into the teacher."""
    student, teacher = student.astype(jnp.float32), lax.stop_gradient(teacher).astype(jnp.float32)
    probs = jax.nn.softmax(teacher, axis=-1)
    # the sum of where p > 0: a class that the student rules out (-inf) costs nothing where the teacher rules it out too
    return -jnp.sum(jnp.where(probs > 0, probs * jax.nn.log_softmax(student, axis=-1), 0), axis=-1)


def upsampled_soft_cross_entropy(
    student: Array,
    teacher: Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    pixel_weight: Array | None = None,
    chunks: Chunks = "auto",
) -> tuple[Array, Array]:
    """`soft_cross_entropy` of both networks' bilinearly up-sampled logits: (weighted sum, sum of weights), float32 scalars.

    student, teacher: float [B,h,w,K], of any two low resolutions. pixel_weight: float or bool [B,*size]; None counts every pixel once.
    The full-size logits never exist (`ops.row_blocks`). Differentiable in student alone.
    """
    if student.ndim != 4 or student.shape[0] != teacher.shape[0] or student.shape[-1] != teacher.shape[-1]:
        raise ConfigError(f"student {student.shape} and teacher {teacher.shape}: expected [B,h,w,K] twice, with the same B and K")
    weight = jnp.ones((1, *size), jnp.float32) if pixel_weight is None else pixel_weight.astype(jnp.float32)
    if weight.shape not in ((1, *size), (student.shape[0], *size)):
        raise ConfigError(f"pixel_weight has shape {weight.shape}: expected {(student.shape[0], *size)}")
    return upsampled_sum(_soft_score, student, (teacher,), weight, None, size, align_corners=align_corners, chunks=chunks)


def _soft_score(full: Array, others: tuple[Array, ...], weight: Array, constants: None) -> tuple[Array, Array, Array]:
    (teacher,) = others
    probs = jax.nn.softmax(teacher, axis=2)
    peak = jnp.max(full, axis=2, keepdims=True)
    power = jnp.exp(full - peak)
    mass = jnp.sum(power, axis=2, keepdims=True)
    loss = (jnp.log(mass) + peak)[:, :, 0] - jnp.sum(probs * full, axis=2)
    return loss, jnp.broadcast_to(weight, loss.shape), power / mass - probs


def symmetric_distillation(
    student: tuple[Array, Array],
    teacher: tuple[Array, Array],
    size: tuple[int, int],
    *,
    reverse_weight: float = 0.5,
    align_corners: bool = False,
    pixel_weight: Array | None = None,
    chunks: Chunks = "auto",
) -> tuple[Array, Array]:
    """DiGA's symmetric knowledge distillation between two views: (sum, weight), float32 scalars; the loss is their quotient.

    mean H(p_T(clean), p_S(mixed)) + reverse_weight * mean H(p_T(mixed), p_S(clean)), temperature 1, teacher without gradient.
    student, teacher: (logits of the clean view, logits of the mixed view), each [B,h,w,K]; size: of the crop, where the means are taken.
    pixel_weight None: every pixel counts, ignored or not, as in the released code; bool [B,*size] restricts both means to it.
    reverse_weight: 0.5 for GTA5 and 0.25 for SYNTHIA, whose whole term enters the loss with 0.5 and 0.25 again.
    Source: DiGA (CVPR 2023), GTA5/util/loss.py and Synthia/util/loss.py, `distillation_loss`. Two views that share a batch axis should
    lie there as neighbours ([B,2,...] reshaped to [2B,...]): one behind the other, a sharded batch would change devices.
    """
    clean, mixed = 0, 1
    (there, weight), (back, _) = (
        upsampled_soft_cross_entropy(student[to], teacher[of], size, align_corners=align_corners, pixel_weight=pixel_weight, chunks=chunks)
        for of, to in ((clean, mixed), (mixed, clean))
    )
    return there + reverse_weight * back, weight
