"""Labels that a network gives to images that have none."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError
from segjax.ops.row_blocks import Chunks, upsampled_map
from segjax.typing import IGNORE, Array


def confident_labels(logits: Array, threshold: float) -> Array:
    """argmax of each pixel where its probability is at least `threshold`, 255 elsewhere. [B,H,W,K] -> uint8 [B,H,W], no gradient."""
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)
    return jnp.where(probs.max(-1) >= threshold, probs.argmax(-1), IGNORE).astype(jnp.uint8)


def hard_labels(logits: Array, size: tuple[int, int], *, align_corners: bool = False, chunks: Chunks = "auto") -> tuple[Array, Array]:
    """argmax and largest probability of logits [B,h,w,K] up-sampled to `size`: uint8 and float32 [B,*size]. No gradient.

    What a teacher says of the target, without full-size logits ever being stored.
    """
    return upsampled_map(_hard, (logits,), (), size, align_corners=align_corners, chunks=chunks)


def _hard(full: tuple[Array, ...], maps: tuple) -> tuple[Array, Array]:
    mass = jnp.sum(jnp.exp(full[0] - jnp.max(full[0], axis=2, keepdims=True)), axis=2)
    return jnp.argmax(full[0], axis=2).astype(jnp.uint8), 1 / mass


def quality(confidence: Array, threshold: float = 0.968) -> Array:
    """The share of the whole batch's pixels whose confidence [B,H,W] reaches the threshold, float32 scalar: DACS's and DAFormer's q.

    One number for all pixels of all images (of all devices): every pseudo-label enters the loss with it, sure or not.
    """
    return jnp.mean(confidence >= threshold, dtype=jnp.float32)


def margin_weight(size: tuple[int, int], *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    """1 inside the margins (pixels) and 0 in them, float32 [*size]: weights of pseudo-labels that nobody can see well.

    DAFormer: top 15, bottom 120 of a 512 crop whose height is the picture's (sky rim, ego car). HRDA: 30, 240, 30, 30 of the full
    1024x2048 target, cropped with it. Off for ACDC and Dark Zurich. Raises ConfigError for margins that leave nothing.
    """
    if min(top, bottom, left, right) < 0 or top + bottom >= size[0] or left + right >= size[1]:
        raise ConfigError(f"margins top={top} bottom={bottom} left={left} right={right}: expected 0 or more, less than {size} together")
    weight = np.zeros(size, np.float32)
    weight[top : size[0] - bottom, left : size[1] - right] = 1
    return weight


def selection_counts(label: Array, kept: Array, truth: Array, num_classes: int) -> Array:
    """How a selection of pseudo-labels fares against held labels: int32 [num_classes, 3] of (labelled, kept, kept and right) pixels.

    label: all pseudo-labels, kept: the same with 255 where they were dropped, truth: the held labels; all of one shape. Counted a
    pseudo-class over pixels whose truth is known, so kept / labelled is the share that the rule keeps of a class and right / kept its
    precision. Counts of batches add up.
    """
    known = truth < num_classes
    picked = known & (kept == label)
    ids = jnp.arange(num_classes)
    of = lambda mask: jnp.sum(mask.reshape(-1, 1) & (label.reshape(-1, 1) == ids), 0, dtype=jnp.int32)
    return jnp.stack([of(known), of(picked), of(picked & (label == truth))], -1)


def mean_softmax(logits: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
    """Weighted mean of several networks' class probabilities, float32 [B,H,W,K] (FDA's multi-band transfer, section 3.4 of the paper).

    weights: their sum should be 1; None is an even mean (the released code's .3333, .3333, .3334 differs from it by 3e-5).
    """
    weights = [1.0 / len(logits)] * len(logits) if weights is None else weights
    parts = [weight * jax.nn.softmax(part.astype(jnp.float32), -1) for weight, part in zip(weights, logits, strict=True)]
    return jnp.sum(jnp.stack(parts), 0)


def confidence_bins(confidence: Array, bins: int = 1 << 16) -> Array:
    """The bin of each confidence in [0,1], int32: bin b holds those from b / bins up to (b + 1) / bins, 1 goes into the last."""
    return jnp.clip((confidence * bins).astype(jnp.int32), 0, bins - 1)


def confidence_histogram(label: Array, confidence: Array, num_classes: int, bins: int = 1 << 16) -> Array:
    """How many pixels of each predicted class have which confidence (`confidence_bins`): int32 [num_classes, bins].

    label: predicted ids (255 left out), confidence in [0,1], of one shape. Histograms of batches add up, so thresholds over a whole
    set need no second look at it.
    """
    place = jnp.where(label < num_classes, label.astype(jnp.int32) * bins + confidence_bins(confidence, bins), num_classes * bins)
    return jnp.bincount(place.ravel(), length=num_classes * bins + 1)[:-1].reshape(num_classes, bins)


def class_thresholds(histogram: np.ndarray, *, share: float = 0.66, rule: str = "code", cap: float = 0.9) -> np.ndarray:
    """The confidence that a pixel of each class must reach, float64 [num_classes]; 0 for a class that was never predicted.

    histogram: `confidence_histogram` summed over the whole set; a threshold is the lower edge of its bin.
    rule "code": the value at place round(share * n) of the n ascending confidences, which keeps the top 1 - share (FDA's
    getSudoLabel_multi.py). rule "paper": keeps the top `share` ("the top 66 %"). Both are capped: a confidence of `cap` is always enough.
    """
    if rule not in ("code", "paper"):
        raise ValueError(f"rule={rule!r}: expected 'code' (keeps the top 1 - share) or 'paper' (keeps the top share)")
    histogram = np.asarray(histogram, np.int64)
    counts = histogram.sum(1)
    place = np.round(counts * (share if rule == "code" else 1 - share)).astype(np.int64)
    place = np.minimum(place, np.maximum(counts - 1, 0))
    bins = (histogram.cumsum(1) > place[:, None]).argmax(1)
    return np.where(counts > 0, np.minimum(bins / histogram.shape[1], cap), 0.0)


def kept(label: Array, confidence: Array, thresholds: Array) -> Array:
    """Labels whose confidence reaches their class's threshold, 255 elsewhere; uint8, the shape of label."""
    needed = jnp.asarray(thresholds, jnp.float32)[jnp.minimum(label, len(thresholds) - 1)]
    return jnp.where((label < len(thresholds)) & (confidence >= needed), label, IGNORE).astype(jnp.uint8)
