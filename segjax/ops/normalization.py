"""Batch, layer and group normalisation; the gradients of the first two are written out: two reductions and one pass, little kept."""

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


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis (torch's LayerNorm; over channels in an NHWC image, LayerNorm2d).

    x [...,C] of any float type, returned in it; scale and bias float32 [C]. Statistics are float32, two-pass.
    """
    return _layer_forward(x, scale, bias, epsilon)[0]


def _layer_forward(x, scale, bias, epsilon):
    centred = x.astype(jnp.float32) - jnp.mean(x, -1, keepdims=True, dtype=jnp.float32)
    inverse = lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + epsilon)
    return (centred * inverse * scale + bias).astype(x.dtype), (x, scale, inverse)


def _layer_backward(epsilon, saved, dy):
    x, scale, inverse = saved
    dy = dy.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - jnp.mean(x, -1, keepdims=True, dtype=jnp.float32)) * inverse
    axes = tuple(range(x.ndim - 1))
    dscale, dbias = jnp.sum(dy * normal, axes), jnp.sum(dy, axes)
    inner = dy * scale
    dx = inverse * (inner - jnp.mean(inner, -1, keepdims=True) - normal * jnp.mean(inner * normal, -1, keepdims=True))
    return dx.astype(x.dtype), dscale, dbias


layer_norm.defvjp(_layer_forward, _layer_backward)


def group_norm(x: Array, scale: Array, bias: Array, epsilon: float, groups: int) -> Array:
    """Normalise x [B,...,C] over space and each of `groups` runs of channels, then scale and bias [C] (torch's GroupNorm).

    Statistics are float32, two-pass; returned in the type of x.
    """
    b, c = x.shape[0], x.shape[-1]
    y = x.astype(jnp.float32).reshape(b, -1, groups, c // groups)
    y = y - jnp.mean(y, (1, 3), keepdims=True)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), (1, 3), keepdims=True) + epsilon)
    return (y.reshape(x.shape) * scale + bias).astype(x.dtype)
