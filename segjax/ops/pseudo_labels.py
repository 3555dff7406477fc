"""Labels that a network gives to images that have none."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.typing import IGNORE, Array


def confident_labels(logits: Array, threshold: float) -> Array:
    """argmax of each pixel where its probability is at least `threshold`, 255 elsewhere. [B,H,W,K] -> uint8 [B,H,W], no gradient."""
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)
    return jnp.where(probs.max(-1) >= threshold, probs.argmax(-1), IGNORE).astype(jnp.uint8)


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
