"""Attention between an image's many pixels and a prompt's few tokens, the image's projections folded into the tokens.

A product of the image with one projection and then with the tokens is a product with both of them, which for T tokens and H heads is
[C,H*T] instead of [C,H*D]: fewer operations where T < D, and no array of all pixels in heads. What the projections' biases add is kept.
"""

import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


def tokens_to_image(query: Array, keys: Array, values: Array, key_kernel: Array, value_kernel: Array, value_bias: Array) -> Array:
    """softmax(query (keys K)^T / sqrt D) (values V + b) for query [B,T,H,D], keys and values [B,N,C] not yet projected, K [C,H,D] and
    V [C,H,E], b [H,E]: [B,T,H,E]. The keys' bias adds the same to every logit of a row, so it is not asked for."""
    b, t, h, d = query.shape
    scaled = query * jnp.asarray(d**-0.5, query.dtype)
    folded = jnp.einsum("bthd,chd->bhtc", scaled, key_kernel).reshape(b, h * t, -1)
    weight, total = _weights(jnp.matmul(folded, keys.swapaxes(1, 2), preferred_element_type=jnp.float32))
    mixed = jnp.matmul(weight.astype(values.dtype), values, preferred_element_type=jnp.float32) / total
    mixed = mixed.astype(values.dtype).reshape(b, h, t, -1)
    return jnp.einsum("bhtc,che->bthe", mixed, value_kernel) + value_bias


def image_to_tokens(
    pixels: Array, key: Array, value: Array, query_kernel: Array, query_bias: Array, out_kernel: Array, mask: Array | None
) -> Array:
    """softmax((pixels Q + b) key^T / sqrt D) value W for pixels [B,G or 1,N,C] not yet projected, Q [C,H,D], b [H,D], key [B,G,T,H,D],
    value [B,G,T,H,E] and W [H,E,O], the heads summed: [B,G,N,O]. One group of pixels serves all G, and is projected once.

    mask: bool [B,G,T], True = may be attended to; at least one of a group.
    """
    b, g, t, h, d = key.shape
    key = key * jnp.asarray(d**-0.5, key.dtype)
    bias = jnp.zeros((b, g, h, t), jnp.float32)
    if pixels.shape[1] < g:  # each head's channels meet its own keys alone
        pixels = jnp.einsum("bnc,chd->bnhd", pixels[:, 0], query_kernel) + query_bias
        folded = jnp.einsum("bgthd,hk->bghdkt", key, jnp.eye(h, dtype=key.dtype)).reshape(b, g, h * d, h * t)
        logits = jnp.einsum("bnk,bgkm->bgnm", pixels.reshape(b, -1, h * d), folded, preferred_element_type=jnp.float32)
    else:
        folded = jnp.einsum("bgthd,chd->bgcht", key, query_kernel).reshape(b, g, -1, h * t)
        logits = jnp.matmul(pixels, folded, preferred_element_type=jnp.float32)
        bias = jnp.einsum("bgthd,hd->bght", key, query_bias, preferred_element_type=jnp.float32)
    if mask is not None:
        bias = jnp.where(mask[:, :, None], bias, jnp.finfo(jnp.float32).min)
    weight, total = _weights((logits + bias.reshape(b, g, 1, h * t)).reshape(b, g, -1, h, t))
    weight = (weight / total).astype(value.dtype).reshape(b, g, -1, h * t)
    return jnp.matmul(weight, jnp.einsum("bgthe,heo->bghto", value, out_kernel).reshape(b, g, h * t, -1))


def _weights(logits: Array) -> tuple[Array, Array]:
    """exp(logits - the largest) and its sums over the last axis, float32."""
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    return weight, weight.sum(-1, keepdims=True)
