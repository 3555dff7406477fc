"""Scaled dot-product attention in the form each platform runs well: batched products on CPU, `jax.nn.dot_product_attention` elsewhere,
on a TPU in blocks of queries where all logits would not stay in its vector memory.

The gradient keeps the arguments, the result and two numbers a row, never the weights of all pairs, which a scanned network would stack up
for every block; it computes them again (off the CPU: the whole forward pass). It is written out because autodiff through a choice by
platform keeps what every platform's form would need: four arrays of all pairs a block, three of them zeros.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.per_device import images_of_a_device
from segjax.typing import Array

_CUDNN_TYPES = (jnp.bfloat16, jnp.float16)
# Of a TPU's vector memory, by the estimates of scripts/tpu_forms.py; float32 logits of a device:
_AT_ONCE = 128 << 20  # bytes up to which those of all queries are worked on at once
_BLOCK = 32 << 20  # bytes of a block, where they are not
_KEYS = 1024  # below, a block's products are too small to be worth it


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
    forms = dict(cpu=partial(_whole, scale=scale), default=partial(_fused_forward, scale=scale))
    if rows := _rows_at_a_time(query, key, mask):
        forms["tpu"] = partial(_in_blocks, scale=scale, rows=rows)
    out, *saved = lax.platform_dependent(query, key, value, mask, **forms)
    return out, (query, key, value, mask, out, saved)


def _backward(scale, saved, dout):
    query, key, value, mask, out, rows = saved
    forms = dict(cpu=partial(_whole_gradients, scale=scale), default=partial(_fused_gradients, scale=scale))
    if count := _rows_at_a_time(query, key, mask):
        forms["tpu"] = partial(_block_gradients, scale=scale, rows=count)
    return *lax.platform_dependent(query, key, value, mask, out, *rows, dout, **forms), None


_attention.defvjp(_forward, _backward)


def _rows_at_a_time(query, key, mask):
    """Of a TPU: queries whose logits stay in vector memory, where those of all do not; 0 where all are worked on at once."""
    n, m = query.shape[1], key.shape[1]
    each = 4 * images_of_a_device(query) * query.shape[2] * m  # bytes of one row
    if mask is not None or each * n <= _AT_ONCE or m < _KEYS:
        return 0
    return max((rows for rows in range(8, n, 8) if n % rows == 0 and each * rows <= _BLOCK), default=0)


def _whole(query, key, value, mask, scale):
    """(result [B,N,H,E], the rows' largest logits, the rows' sums, float32 [B,H,N,1])."""
    out, top, total = _mixed(_heads_first(query), _heads_first(key), _heads_first(value), mask, scale)
    return _heads_first(out), top, total


def _in_blocks(query, key, value, mask, scale, rows):
    """`_whole`, without a mask, `rows` queries at a time."""
    query, key, value = map(_heads_first, (query, key, value))
    out, top, total = map(_joined, lax.map(lambda part: _mixed(part, key, value, None, scale), _split(query, rows)))
    return _heads_first(out), top, total


def _fused_forward(query, key, value, mask, scale):
    rows = jnp.zeros((query.shape[0], query.shape[2], query.shape[1], 1), jnp.float32)
    return _fused(query, key, value, mask, scale), rows, rows


def _whole_gradients(query, key, value, mask, out, top, total, dout, scale):
    query, key, value, out, dout = map(_heads_first, (query, key, value, out, dout))
    found = _mixed_gradients(query, key, value, mask, out, top, total, dout, scale)
    return tuple(_heads_first(d).astype(x.dtype) for d, x in zip(found, (query, key, value), strict=True))


def _block_gradients(query, key, value, mask, out, top, total, dout, scale, rows):
    query, key, value, out, dout = map(_heads_first, (query, key, value, out, dout))

    def step(sums, parts):
        part, out, top, total, dout = parts
        dquery, *more = _mixed_gradients(part, key, value, None, out, top, total, dout, scale)
        return [a + b for a, b in zip(sums, more, strict=True)], dquery.astype(part.dtype)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (key, value)]
    (dkey, dvalue), dquery = lax.scan(step, zeros, [_split(x, rows) for x in (query, out, top, total, dout)])
    return tuple(_heads_first(d).astype(x.dtype) for d, x in ((_joined(dquery), query), (dkey, key), (dvalue, value)))


def _fused_gradients(query, key, value, mask, out, top, total, dout, scale):
    return jax.vjp(lambda query, key, value: _fused(query, key, value, mask, scale), query, key, value)[1](dout)


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


def _mixed(query, key, value, mask, scale):
    """Heads first: (result [B,H,N,E], the rows' largest logits, the rows' sums)."""
    weight, top = _weights(query, key, mask, scale)
    total = weight.sum(-1, keepdims=True)
    return (_product(weight, value, value.dtype) / total).astype(value.dtype), top, total


def _mixed_gradients(query, key, value, mask, out, top, total, dout, scale):
    """Heads first, float32: those of query, key and value."""
    weight, _ = _weights(query, key, mask, scale, top)
    dout = dout.astype(jnp.float32) / total
    dvalue = _product(weight.swapaxes(-1, -2), dout, value.dtype)
    dweight = _product(dout, value.swapaxes(-1, -2), value.dtype) - (dout * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dlogits = weight * dweight * scale
    if mask is not None:
        dlogits = jnp.where(mask, dlogits, 0)
    return _product(dlogits, key, key.dtype), _product(dlogits.swapaxes(-1, -2), query, query.dtype), dvalue


def _weights(query, key, mask, scale, top=None):
    """Heads first: exp(logits - top), float32 [B,H,N,M], not yet divided by the rows' sums; the rows' largest logits `top` [B,H,N,1]."""
    logits = _product(query * jnp.asarray(scale, query.dtype), key.swapaxes(-1, -2), query.dtype)
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


def _split(x, rows):
    """[B,H,N,D] as [N / rows,B,H,rows,D]; `_joined` puts it together again."""
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, rows, x.shape[-1]), 2, 0)


def _joined(x):
    return jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, x.shape[-1])
