"""Batch, layer and group normalisation; the gradients of the first two are written out: two reductions and one pass, little kept."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(x: Array, scale: Array, bias: Array, epsilon: float, views: int = 1) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over every axis but the last, and the mean and (biased) variance [views,C].

    x [B * views,...,C] of any float type: the views of an image lie side by side, and each view has statistics of its own. scale and bias
    float32 [C]. Mean and variance carry no gradient: they serve running statistics. Under `jit` with a sharded batch the sums run over the
    whole batch.
    """
    return _forward(x, scale, bias, epsilon, views)[0]


def _apart(x: Array, views: int) -> tuple[Array, tuple[int, ...]]:
    """x with an axis for the views where there are several, and the axes that statistics are taken over."""
    if views == 1:
        return x, tuple(range(x.ndim - 1))
    x = x.reshape(-1, views, *x.shape[1:])
    return x, (0, *range(2, x.ndim - 1))


def _forward(x, scale, bias, epsilon, views):
    apart, axes = _apart(x, views)
    mean = jnp.mean(apart, axes, dtype=jnp.float32, keepdims=True)
    var = jnp.maximum(jnp.mean(jnp.square(apart.astype(jnp.float32)), axes, keepdims=True) - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    y = (apart.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype).reshape(x.shape)
    flat = lambda statistic: statistic.reshape(views, -1)
    return (y, flat(mean), flat(var)), (x, scale, mean, inverse)


def _backward(epsilon, views, saved, cotangents):
    x, scale, mean, inverse = saved
    (x, axes), shape = _apart(x, views), x.shape
    dy = _apart(cotangents[0], views)[0].astype(jnp.float32)
    count = x.size // (views * x.shape[-1])
    centred = x.astype(jnp.float32) - mean
    dbias = jnp.sum(dy, axes, keepdims=True)
    dscale = jnp.sum(dy * centred, axes, keepdims=True) * inverse
    dx = scale * inverse * (dy - dbias / count - centred * (inverse * dscale / count))
    over_views = lambda gradient: jnp.sum(gradient.reshape(views, -1), 0)
    return dx.astype(x.dtype).reshape(shape), over_views(dscale), over_views(dbias)


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
