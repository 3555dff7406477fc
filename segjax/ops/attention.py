"""Scaled dot-product attention in the form each platform runs well: batched products on CPU, `jax.nn.dot_product_attention` elsewhere.

The gradient keeps the arguments, the result and two numbers a row, never the weights of all pairs, which a scanned network would stack up
for every block; it computes them again (off the CPU: the whole forward pass). It is written out because autodiff through a choice by
platform keeps what every platform's form would need: four arrays of all pairs a block, three of them zeros.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

_CUDNN_TYPES = (jnp.bfloat16, jnp.float16)


@partial(jax.jit, static_argnames=("scale", "causal"))
def attention(
    query: Array, key: Array, value: Array, *, scale: float | None = None, mask: Array | None = None, causal: bool = False
) -> Array:
    """softmax(query key^T * scale) value for query [B,N,H,D], key [B,M,H,D] and value [B,M,H,E]; returns [B,N,H,E] of value's type.

    scale: default D ** -0.5. mask: bool, broadcast to [B,H,N,M], True = may attend; a row that may attend nowhere attends evenly.
    causal: token n sees tokens 0..n. The softmax is float32 whatever the type of the arguments. On CPU heads move before tokens and the
    division comes last (1.5-4x faster than `dot_product_attention` there); on a GPU half-precision arguments go to cuDNN.
    """
    if causal:
        triangle = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))[None, None]
        mask = triangle if mask is None else mask & triangle
    return _attention(query, key, value, mask, float(query.shape[-1] ** -0.5 if scale is None else scale))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, mask, scale):
    return _forward(query, key, value, mask, scale)[0]


def _forward(query, key, value, mask, scale):
    def products(query, key, value, mask):
        weight, top = _weights(query, key, mask, scale)
        total = weight.sum(-1, keepdims=True)
        mixed = jnp.matmul(weight.astype(value.dtype), _heads_first(value), preferred_element_type=jnp.float32)
        return _heads_first((mixed / total).astype(value.dtype)), top, total

    def fused(query, key, value, mask):
        rows = jnp.zeros((query.shape[0], query.shape[2], query.shape[1], 1), jnp.float32)
        return _fused(query, key, value, mask, scale), rows, rows

    out, *rows = lax.platform_dependent(query, key, value, mask, cpu=products, default=fused)
    return out, (query, key, value, mask, out, rows)


def _backward(scale, saved, dout):
    query, key, value, mask, out, rows = saved

    def products(query, key, value, mask, out, top, total, dout):
        weight, _ = _weights(query, key, mask, scale, top)
        query, key, value, out, dout = map(_heads_first, (query, key, value, out, dout))
        dout = dout.astype(jnp.float32) / total
        dvalue = _product(weight.swapaxes(-1, -2), dout, value.dtype)
        dweight = _product(dout, value.swapaxes(-1, -2), value.dtype) - (dout * out.astype(jnp.float32)).sum(-1, keepdims=True)
        dlogits = weight * dweight * scale
        if mask is not None:
            dlogits = jnp.where(mask, dlogits, 0)
        dquery, dkey = _product(dlogits, key, key.dtype), _product(dlogits.swapaxes(-1, -2), query, query.dtype)
        return tuple(_heads_first(d).astype(x.dtype) for d, x in ((dquery, query), (dkey, key), (dvalue, value)))

    def fused(query, key, value, mask, out, top, total, dout):
        return jax.vjp(lambda query, key, value: _fused(query, key, value, mask, scale), query, key, value)[1](dout)

    return *lax.platform_dependent(query, key, value, mask, out, *rows, dout, cpu=products, default=fused), None


_attention.defvjp(_forward, _backward)


def _fused(query, key, value, mask, scale):
    """It takes one width for all three: zeros fill the narrower, which change no logit."""
    full = None if mask is None else jnp.broadcast_to(mask, (query.shape[0], query.shape[2], query.shape[1], key.shape[1]))
    wide, width = max(query.shape[-1], value.shape[-1]), value.shape[-1]
    query, key, value = (x if x.shape[-1] == wide else jnp.pad(x, [(0, 0)] * 3 + [(0, wide - x.shape[-1])]) for x in (query, key, value))
    out = jax.nn.dot_product_attention(query, key, value, mask=full, scale=scale, implementation=_implementation(query))
    return out[..., :width]


def _implementation(query: Array):
    """cuDNN where it takes the shapes; it is asked for only where there is a GPU, for it looks for the library while tracing."""
    fits = query.dtype in _CUDNN_TYPES and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    return "cudnn" if fits and jax.default_backend() == "gpu" else None


def _weights(query, key, mask, scale, top=None):
    """exp(logits - top), float32 [B,H,N,M], not yet divided by the rows' sums, and the rows' largest logits `top` [B,H,N,1]."""
    query, key = _heads_first(query * jnp.asarray(scale, query.dtype)), _heads_first(key)
    logits = _product(query, key.swapaxes(-1, -2), query.dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    top = logits.max(-1, keepdims=True) if top is None else top
    return jnp.exp(logits - top), top


def _product(left, right, dtype):
    """left @ right of that type, summed in float32."""
    return jnp.matmul(left.astype(dtype), right.astype(dtype), preferred_element_type=jnp.float32)


def _heads_first(x):
    """[B,N,H,D] <-> [B,H,N,D]."""
    return x.swapaxes(1, 2)
