"""Losses of one pixel: maps out, one masked reduction at the call. Labels are ints, 255 (IGNORE) counts nowhere."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.row_blocks import Chunks, upsampled_map, upsampled_sum
from segjax.typing import Array


def masked_mean(value: Array, mask: Array) -> Array:
    """Mean of `value` over the pixels of `mask` (bool, or float weights), float32 scalar; 0 when nothing counts.

    Sum and count each run over the whole (sharded) batch before the division. Values outside the mask may be NaN.
    """
    weight = mask.astype(jnp.float32)
    total = jnp.sum(jnp.where(weight != 0, value, 0).astype(jnp.float32) * weight)
    count = jnp.sum(weight)
    return total / jnp.where(count > 0, count, 1)


def cross_entropy(logits: Array, label: Array) -> Array:
    """-log softmax(logits)[label] of each pixel in nats, float32 [B,H,W]; 0 at 255.

    logits float [B,H,W,K], label int [B,H,W]. An id outside 0..K-1 is ignored like 255: compiled code cannot raise (data checks do).
    """
    logits = logits.astype(jnp.float32)
    hit = label.astype(jnp.int32)[..., None] == jnp.arange(logits.shape[-1])
    # a masked sum, not a gather: the gather's gradient is a scatter
    loss = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
    return jnp.where(jnp.any(hit, axis=-1), loss, 0)


def entropy(logits: Array) -> Array:
    """Shannon entropy of each pixel's class distribution in nats, 0..ln K. [...,K] -> float32 [...]."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    probs = jnp.exp(log_probs)
    return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)


def robust_entropy(logits: Array, eta: float = 2.0, normalizer: float | None = None, epsilon: float = 1e-8) -> Array:
    """Charbonnier penalty of the entropy, ((e / normalizer)^2 + epsilon)^eta for each pixel. [...,K] -> float32 [...].

    normalizer None: ln K, so that the uniform distribution scores 1. The authors' code divides by 2.9444 (ln 19 rounded) whatever K
    is; the paper (FDA, CVPR 2020, eq. 4) has epsilon = 0.001^2 and no normalizer (1.0). Source: YanchaoYang/FDA model/deeplab.py.
    """
    share = entropy(logits) / (math.log(logits.shape[-1]) if normalizer is None else normalizer)
    return (share * share + epsilon) ** eta


def self_information(logits: Array) -> Array:
    """-p log2(p + 1e-30) / log2 K of each class and pixel, float32 [...,K]: what ADVENT's discriminator sees (func.py, prob_2_entropy)."""
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return -probs * jnp.log2(probs + 1e-30) / math.log2(logits.shape[-1])


def min_entropy(logits: Array) -> Array:
    """Normalized entropy of each pixel, 0..1: [...,K] -> float32 [...]. Its mean is ADVENT's MinEnt loss (loss.py, entropy_loss)."""
    return jnp.sum(self_information(logits), axis=-1)


def upsampled_cross_entropy(
    logits: Array,
    label: Array,
    *,
    align_corners: bool = False,
    class_weights: Array | tuple[float, ...] | None = None,
    pixel_weight: Array | None = None,
    mean_over: Literal["valid", "all"] = "valid",
    chunks: Chunks = "auto",
) -> tuple[Array, Array]:
    """Cross-entropy at the label's size of bilinearly up-sampled logits: (weighted sum, sum of weights), float32 scalars.

    logits float [B,h,w,K] at the network's stride, label int [B,H,W] (255 and ids outside 0..K-1 count nowhere), class_weights
    float [K] or None, pixel_weight float or bool [B,H,W] or None. The mean is sum / weight_sum, as torch's
    CrossEntropyLoss(weight, ignore_index=255) of F.interpolate has it.
    mean_over "all": the second number is that of all pixels, ignored or not, whatever the weights: mmseg's mean (DAFormer, HRDA, MIC;
    pixel_weight is their seg_weight) and DiGA's (util/loss.py: pixels with label >= 0, which 255 is).
    Equal to `cross_entropy(bilinear(logits), label)` to float tolerance, but full-resolution logits never exist: blocks of rows are
    up-sampled, scored and differentiated one after the other, the gradient in the same pass as the value.
    chunks: number of row blocks; "auto" fits a block to the platform's cache. Differentiable in logits only (weights are constants).
    """
    _check(logits, label)
    classes = logits.shape[-1]
    weights = jnp.ones(classes, jnp.float32) if class_weights is None else jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (classes,):
        raise ConfigError(f"class_weights has shape {weights.shape}: expected one weight for each of the {classes} classes")
    if pixel_weight is not None and pixel_weight.shape != label.shape:
        raise ConfigError(f"pixel_weight has shape {pixel_weight.shape}: expected the label's, {label.shape}")
    if mean_over not in ("valid", "all"):
        raise ConfigError(f"mean_over={mean_over!r}: expected 'valid' (labelled pixels) or 'all'")
    maps = (label,) if pixel_weight is None else (label, pixel_weight.astype(jnp.float32))
    size = label.shape[1], label.shape[2]
    total, count = upsampled_sum(_hard_score, logits, (), maps, weights, size, align_corners=align_corners, chunks=chunks)
    return total, count if mean_over == "valid" else jnp.asarray(label.size, jnp.float32)


def _hard_score(full: Array, others: tuple[Array, ...], maps: tuple[Array, ...], weights: Array) -> tuple[Array, Array, Array]:
    """Cross-entropy of a block of rows, [B,rows,K,W] against labels [B,rows,W]."""
    truth, *pixel_weight = maps
    hit = truth.astype(jnp.int32)[:, :, None] == jnp.arange(full.shape[2])[:, None]
    weight = jnp.sum(jnp.where(hit, weights[:, None], 0), axis=2)
    if pixel_weight:
        weight = weight * pixel_weight[0]
    peak = jnp.max(full, axis=2, keepdims=True)
    power = jnp.exp(full - peak)
    mass = jnp.sum(power, axis=2, keepdims=True)
    loss = (jnp.log(mass) + peak)[:, :, 0] - jnp.sum(jnp.where(hit, full, 0), axis=2)
    return loss, weight, power / mass - hit


def hard_pixels(
    logits: Array, label: Array, *, threshold: float = 0.7, min_kept: int = 100_000, align_corners: bool = False, chunks: Chunks = "auto"
) -> Array:
    """The pixels of the batch that online hard example mining learns from, bool [B,H,W]: `upsampled_cross_entropy`'s pixel_weight.

    Kept: labelled pixels whose label's probability is below max(threshold, p), where p is the min_kept-th smallest (counted from 0) of
    the whole (sharded) batch, or the largest when there are no more: below, so that the largest itself goes. No gradient.
    Source: OhemCrossEntropy of DiGA's Synthia/util/loss.py (there 0.7 and 100,000) and of HRNet's code before it.
    """
    _check(logits, label)
    size = label.shape[1], label.shape[2]
    probability = upsampled_map(_label_probability, (logits,), label, size, align_corners=align_corners, chunks=chunks)
    valid = (label >= 0) & (label < logits.shape[-1])
    limit = kth_smallest(probability, valid, jnp.minimum(min_kept, jnp.sum(valid, dtype=jnp.int32) - 1))
    return valid & (probability < jnp.maximum(limit, threshold))


def _label_probability(full: tuple[Array, ...], label: Array) -> Array:
    hit = label.astype(jnp.int32)[:, :, None] == jnp.arange(full[0].shape[2])[:, None]
    return jnp.sum(jnp.where(hit, jax.nn.softmax(full[0], axis=2), 0), axis=2)


def kth_smallest(value: Array, mask: Array, k: Array) -> Array:
    """The k-th smallest (from 0) of the values >= 0 under `mask`, float32 scalar; 0 for k < 0.

    Exact and without a sort: float32 numbers >= 0 are ordered as their bits are, and each bit of the answer is one count over the batch,
    so devices exchange 31 integers where a sort would gather every pixel.
    """
    bits = jnp.where(mask, lax.bitcast_convert_type(value.astype(jnp.float32), jnp.int32), jnp.iinfo(jnp.int32).max)

    def settle(i, found):
        candidate = found | (1 << (30 - i))
        return jnp.where(jnp.sum(bits < candidate, dtype=jnp.int32) <= k, candidate, found)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, settle, jnp.int32(0)), jnp.float32)


def _check(logits: Array, label: Array) -> None:
    if logits.ndim != 4 or label.ndim != 3 or logits.shape[0] != label.shape[0]:
        raise ConfigError(f"logits {logits.shape} and label {label.shape}: expected [B,h,w,K] and [B,H,W] with the same B")
