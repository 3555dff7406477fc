"""Scaled dot-product attention over few tokens with a bias for every pair of them."""

import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


def attention_with_bias(query: Array, key: Array, value: Array, bias: Array) -> Array:
    """softmax(query key^T / sqrt(D) + bias) value for query, key, value [B,N,H,D] and bias [H,N,N]: [B,N,H,D] of value's type.

    For the windows of an image, many and small: the bias is shared by all of them. Softmax in float32.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype), key, value))
    logits = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32) + bias.astype(jnp.float32)
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.matmul(weight.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / weight.sum(-1, keepdims=True)).astype(value.dtype).transpose(0, 2, 1, 3)
