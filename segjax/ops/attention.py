"""Scaled dot-product attention in the form each platform runs well: batched products on CPU, `jax.nn.dot_product_attention` elsewhere."""

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

_CUDNN_TYPES = (jnp.bfloat16, jnp.float16)


def attention(
    query: Array, key: Array, value: Array, *, scale: float | None = None, mask: Array | None = None, causal: bool = False
) -> Array:
    """softmax(query key^T * scale) value for query [B,N,H,D], key [B,M,H,D] and value [B,M,H,E]; returns [B,N,H,E] of value's type.

    scale: default D ** -0.5. mask: bool, broadcast to [B,H,N,M], True = may attend; a row that may attend nowhere attends evenly.
    causal: token n sees tokens 0..n. The softmax is float32 whatever the type of the arguments. On CPU heads move before tokens and the
    division comes last (1.5-4x faster than `dot_product_attention` there); on a GPU half-precision arguments go to cuDNN.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if causal:
        triangle = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))[None, None]
        mask = triangle if mask is None else mask & triangle

    def products(query, key, value):
        return _products(query, key, value, scale, mask)

    def fused(query, key, value):
        full = None if mask is None else jnp.broadcast_to(mask, (query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
        return jax.nn.dot_product_attention(query, key, value, mask=full, scale=scale, implementation=_implementation(query, value))

    return lax.platform_dependent(query, key, value, cpu=products, default=fused)


def _implementation(query: Array, value: Array):
    """cuDNN where it takes the shapes; it is asked for only where there is a GPU, for it looks for the library while tracing."""
    fits = query.dtype in _CUDNN_TYPES and query.shape[-1] == value.shape[-1] and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else None


def _products(query, key, value, scale, mask):
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query * jnp.asarray(scale, query.dtype), key, value))
    logits = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.matmul(weight.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / weight.sum(-1, keepdims=True)).astype(value.dtype).transpose(0, 2, 1, 3)
