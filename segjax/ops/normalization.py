"""Batch, layer and group normalisation; the gradients of the first two are written out: two reductions and one pass, little kept.

Here as in `ops.conv`, `ops.depthwise` and `ops.attention` a `jit` around a function keeps what was traced for one shape: a network of many
layers is traced and lowered in less time, and the compiler sees the same operations.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops import kept
from segjax.typing import Array


@partial(jax.jit, static_argnums=(3, 4))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float, views: int = 1) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over every axis but the last, and the mean and (biased) variance [views,C].

    x [B * views,...,C] of any float type: the views of an image lie side by side, and each view has statistics of its own. scale and bias
    float32 [C]. Mean and variance carry no gradient: they serve running statistics. Under `jit` with a sharded batch the sums run over the
    whole batch.
    """
    return _batch_norm(x, scale, bias, epsilon, views)


def _means(x: Array, views: int) -> Array:
    """Means [views,C] of x [B * views,...,C], float32: of each image first, so that x keeps its shape and, on TPU, its layout."""
    if views == 1:
        return jnp.mean(x, tuple(range(x.ndim - 1)), dtype=jnp.float32)[None]
    images = jnp.mean(x, tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
    return jnp.mean(images.reshape(-1, views, x.shape[-1]), 0)


def _for_images(statistics: Array, x: Array) -> Array:
    """[views,C] as what x [B * views,...,C] is multiplied by."""
    views = statistics.shape[0]
    if views == 1:
        return statistics[0]
    return jnp.tile(statistics, (x.shape[0] // views, 1)).reshape(-1, *(1,) * (x.ndim - 2), x.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x, scale, bias, epsilon, views):
    return _forward(x, scale, bias, epsilon, views)[0]


def _forward(x, scale, bias, epsilon, views):
    mean = kept.statistics(_means(x, views))
    square = kept.statistics(_means(jnp.square(x.astype(jnp.float32)), views))
    var = jnp.maximum(square - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    y = (x.astype(jnp.float32) * _for_images(factor, x) + _for_images(bias - mean * factor, x)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(epsilon, views, saved, cotangents):
    x, scale, mean, inverse = saved
    dy = cotangents[0].astype(jnp.float32)
    centred = x.astype(jnp.float32) - _for_images(mean, x)
    dbias, dscale = _means(dy, views), _means(dy * centred, views) * inverse  # both over the number of pixels
    dx = _for_images(scale * inverse, x) * (dy - _for_images(dbias, x) - centred * _for_images(inverse * dscale, x))
    count = x.size // (views * x.shape[-1])
    return dx.astype(x.dtype), count * jnp.sum(dscale, 0), count * jnp.sum(dbias, 0)


_batch_norm.defvjp(_forward, _backward)


@partial(jax.jit, static_argnums=3)
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the last axis (torch's LayerNorm; over channels in an NHWC image, LayerNorm2d).

    x [...,C] of any float type, returned in it; scale and bias float32 [C]. Statistics are float32, two-pass.
    """
    return _layer_norm(x, scale, bias, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
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


_layer_norm.defvjp(_layer_forward, _layer_backward)


@partial(jax.jit, static_argnums=(3, 4))
def group_norm(x: Array, scale: Array, bias: Array, epsilon: float, groups: int) -> Array:
    """Normalise x [B,...,C] over space and each of `groups` runs of channels, then scale and bias [C] (torch's GroupNorm).

    Statistics are float32, two-pass; returned in the type of x.
    """
    b, c = x.shape[0], x.shape[-1]
    y = x.astype(jnp.float32).reshape(b, -1, groups, c // groups)
    y = y - jnp.mean(y, (1, 3), keepdims=True)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), (1, 3), keepdims=True) + epsilon)
    return (y.reshape(x.shape) * scale + bias).astype(x.dtype)
