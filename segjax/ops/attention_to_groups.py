"""Attention of one set of queries to many groups of keys, each group with a softmax of its own: the queries are not repeated."""

import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


def attention_to_groups(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """query [B,N,H,D] to key [B,G,M,H,D] and value [B,G,M,H,E] in every group: [B,G,N,H,E] of value's type.

    mask: bool [B,G,M], True = may be attended to; at least one of a group. Scale D ** -0.5, softmax in float32. Equals `ops.attention` with
    the queries repeated G times, at M keys a group, which are few (the prompts of a mask decoder) where the queries are many (an image).
    """
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = jnp.einsum("bnhd,bgmhd->bhngm", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    weight = (weight / weight.sum(-1, keepdims=True)).astype(value.dtype)
    return jnp.einsum("bhngm,bgmhe->bgnhe", weight, value, preferred_element_type=jnp.float32).astype(value.dtype)
