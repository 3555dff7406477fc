"""Class centroids in feature space: means of an image's or a batch's features, two ways to keep them, the nearest of them.

Features float [B,h,w,D], centroids float32 [K,D]. Sums run over the whole (sharded) batch, so devices agree.
"""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.resize import nearest
from segjax.ops.row_blocks import Chunks, upsampled_map
from segjax.typing import IGNORE, Array


def class_sums(features: Array, label: Array, num_classes: int) -> tuple[Array, Array]:
    """Sum of the features of each image's classes and their pixels: float32 [B,K,D] and [B,K]. label [B,H,W], 255 in none.

    A label of another size comes down to the features' by nearest neighbour, floor(i H / h) (ENet's features are at half its logits' size).
    A batch's mean is sum.sum(0) / count.sum(0). No gradient.
    """
    batch, dims = features.shape[0], features.shape[-1]
    label = nearest(label, (features.shape[1], features.shape[2]))
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(batch, -1, dims)
    hit = (label.reshape(batch, -1, 1) == jnp.arange(num_classes)).astype(jnp.float32)
    sums = jnp.einsum("bnk,bnd->bkd", hit, flat, precision=lax.Precision.HIGHEST)
    return sums, jnp.sum(hit, 1)


def image_means(features: Array, label: Array, num_classes: int, *, min_pixels: int = 5) -> tuple[Array, Array]:
    """Mean feature of each image's classes [B,K,D] (0 where not counted), and which of them hold min_pixels or more, bool [B,K]."""
    sums, count = class_sums(features, label, num_classes)
    counted = count >= min_pixels
    return jnp.where(counted[..., None], sums / jnp.maximum(count, 1)[..., None], 0), counted


def predicted_labels(logits: Array, label: Array | None = None) -> Array:
    """argmax of logits [B,h,w,K] where it is what `label` [B,H,W] says, else 255: uint8 [B,h,w]. label None: the argmax everywhere.

    The label comes down by nearest neighbour, floor(i H / h). DiGA's offline centroids take every argmax; those that move in
    self-training only where the network agrees with the consensus (target) or with the ground truth (source).
    """
    found = jnp.argmax(logits, -1).astype(jnp.uint8)
    return (
        found if label is None else jnp.where(found == nearest(label, (logits.shape[1], logits.shape[2])), found, IGNORE).astype(jnp.uint8)
    )


def move(centroids: Array, means: Array, counted: Array, momentum: float) -> Array:
    """Centroids [K,D] after mu <- (1 - momentum) mu + momentum mean for one image after another, where counted. means [B,K,D].

    Closed form: no loop, and one sum over the batch. Source: DiGA GTA5/calc_centroids.py, update_objective_SingleVector ("moving_average",
    momentum 1e-4); it takes the target's images first, then the source's: call twice, or concatenate.
    """
    counted = counted.astype(jnp.int32)
    later = jnp.cumsum(counted[::-1], 0)[::-1] - counted
    share = jnp.where(counted > 0, momentum * (1 - momentum) ** later.astype(jnp.float32), 0)
    kept = (1 - momentum) ** jnp.sum(counted, 0).astype(jnp.float32)
    return kept[:, None] * centroids + jnp.einsum("bk,bkd->kd", share, means, precision=lax.Precision.HIGHEST)


def accumulate(centroids: Array, number: Array, means: Array, counted: Array, *, cap: int = 3000) -> tuple[Array, Array]:
    """Centroids [K,D] and how many means each holds [K] after mu <- (mu n + mean) / (n + 1), n <- min(n + 1, cap), image after image.

    Once n has reached the cap this is a moving average of rate 1 / (cap + 1). Source: calc_centroids.py, the mode "mean".
    """

    def add(state, image):
        centroids, number = state
        mean, counted = image
        new = (centroids * number[:, None] + mean) / (number[:, None] + 1)
        centroids = jnp.where(counted[:, None], new, centroids)
        return (centroids, jnp.where(counted, jnp.minimum(number + 1, cap), number)), None

    return lax.scan(add, (centroids, number.astype(jnp.float32)), (means, counted))[0]


def distances(features: Array, centroids: Array) -> Array:
    """Euclidean distance of each feature to each centroid: [...,D], [K,D] -> float32 [...,K]; its gradient is 0 where the distance is.

    As |f|^2 - 2 f.mu + |mu|^2, one matrix product, about the centroids' mean: without it a common offset would eat the digits.
    """
    centre = lax.stop_gradient(jnp.mean(centroids.astype(jnp.float32), 0))
    features, centroids = features.astype(jnp.float32) - centre, centroids.astype(jnp.float32) - centre
    inner = jnp.matmul(features, centroids.T, precision=lax.Precision.HIGHEST)
    square = jnp.sum(features**2, -1, keepdims=True) - 2 * inner + jnp.sum(centroids**2, -1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def centroid_weights(features: Array, centroids: Array, known: Array | None = None, *, temperature: float = 1.0) -> Array:
    """softmax over classes of -distance / temperature: [...,D], [K,D] -> float32 [...,K]. Classes that are not `known` [K] get 0.

    known None: all classes compete, those never seen with whatever stands in their row (DiGA: zeros).
    """
    score = -distances(features, centroids) / temperature
    return jax.nn.softmax(score if known is None else jnp.where(known, score, -jnp.inf), axis=-1)


def nearest_centroid(
    features: Array,
    centroids: Array,
    size: tuple[int, int],
    known: Array | None = None,
    *,
    align_corners: bool = True,
    chunks: Chunks = "auto",
) -> Array:
    """The class whose up-sampled `centroid_weights` are largest: features [B,h,w,D] -> uint8 [B,*size]. No gradient.

    Source: DiGA's self-training script (weights interpolated, then the argmax).
    """
    weights = centroid_weights(lax.stop_gradient(features), centroids, known)
    return upsampled_map(_argmax, (weights,), (), size, align_corners=align_corners, chunks=chunks)


def _argmax(full: tuple[Array, ...], maps: tuple) -> Array:
    return jnp.argmax(full[0], axis=2).astype(jnp.uint8)
