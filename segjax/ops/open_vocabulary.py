"""Classes in words: what a mask's pixels say of each, by cosine to text embeddings, inside the training vocabulary and outside of it.

Source: the text head of bytedance/fc-clip (Yu et al. 2023, arXiv 2308.02487) as yasserben/CLOUDS has it (clouds/clouds.py,
modeling/transformer_decoder/clouds_transformer_decoder.py); its released configurations leave it off.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.typing import Array

LARGEST_SCALE = 100.0


def pool_by_masks(features: Array, mask_logits: Array) -> Array:
    """The mean of features [B,h,w,C] over each mask, float32 [...,B,Q,C]. mask_logits [...,B,h,w,Q]: inside where above 0, without a
    gradient; an empty mask gives zeros."""
    inside = lax.stop_gradient(mask_logits > 0).astype(features.dtype)
    sums = jnp.einsum("bhwc,...bhwq->...bqc", features, inside, preferred_element_type=jnp.float32)
    return sums / (jnp.sum(inside, (-3, -2), dtype=jnp.float32) + 1e-8)[..., None]


def cosine_logits(x: Array, text: Array, scale: Array, synonyms: Sequence[int]) -> Array:
    """min(exp(scale), 100) * cosine of x [...,E] to the words of each class, of its synonyms the largest: float32 [...,K+1], void last.

    text [S+1,E], vectors of length 1: `synonyms[k]` of class k one after the other, then void. A zero x gives zeros.
    """
    x = x.astype(jnp.float32)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    every = jnp.minimum(jnp.exp(scale), LARGEST_SCALE) * jnp.matmul(x, text.T, precision=lax.Precision.HIGHEST)
    ends = np.cumsum([*synonyms, 1])
    return jnp.stack([every[..., end - count : end].max(-1) for end, count in zip(ends, (*synonyms, 1), strict=True)], -1)


def geometric_ensemble(
    inside: Array, outside: Array, seen: Sequence[bool], *, alpha: float = 0.4, beta: float = 0.8, valid: Array | None = None
) -> Array:
    """Class logits [...,Q,K+1] (void last) of both vocabularies as one: log of p_in^(1-a) p_out^a, normalised, times what void leaves.

    inside: of the trained classifier; outside: of frozen CLIP (its void is not read). a is alpha for classes that were `seen` in training,
    beta for others, and 0 for queries that are not `valid` [...,Q].
    """
    weight = jnp.where(jnp.asarray(seen), alpha, beta)
    if valid is not None:
        weight = weight * valid[..., None]
    void = jax.nn.softmax(inside)[..., -1:]
    log_share = (1 - weight) * jax.nn.log_softmax(inside[..., :-1]) + weight * jax.nn.log_softmax(outside[..., :-1])
    shares = jnp.concatenate([jax.nn.softmax(log_share) * (1 - void), void], -1)
    return jnp.log(shares + 1e-8)
