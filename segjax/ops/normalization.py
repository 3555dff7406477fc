"""Batch normalisation with its gradient written out: two reductions and one pass, nothing kept but the input and its statistics."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over every axis but the last, and the mean and (biased) variance.

    x [...,C] of any float type; scale, bias, mean and var float32 [C]. Mean and variance carry no gradient: they serve running
    statistics. Under `jit` with a sharded batch the sums run over the whole batch.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=jnp.float32)
    var = jnp.maximum(jnp.mean(jnp.square(x.astype(jnp.float32)), axes) - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    y = (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(epsilon, saved, cotangents):
    x, scale, mean, inverse = saved
    dy = cotangents[0].astype(jnp.float32)
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - mean
    dbias = jnp.sum(dy, axes)
    dscale = jnp.sum(dy * centred, axes) * inverse
    dx = scale * inverse * (dy - dbias / count - centred * (inverse * dscale / count))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)
