"""Scaled dot-product attention over few tokens with a bias for every pair of them."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.typing import Array


def attention_with_bias(query: Array, key: Array, value: Array, bias: Array, mask: Array | None = None) -> Array:
    """softmax(query key^T / sqrt(D) + bias) value for query, key, value [B,N,H,D] and bias [H,N,N]: [B,N,H,D] of value's type.

    For the windows of an image, many and small: the bias is shared by all of them. mask: bool [W,N,N], True = may attend, of the W windows
    of each image (B is a multiple of W, an image's windows follow each other). Softmax in float32.
    """
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype), key, value))
    logits = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32) + bias.astype(jnp.float32)
    if mask is not None:
        by_image = logits.reshape(-1, mask.shape[0], *logits.shape[1:])
        logits = jnp.where(mask[:, None], by_image, jnp.finfo(jnp.float32).min).reshape(logits.shape)
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    mixed = jnp.matmul(weight.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / weight.sum(-1, keepdims=True)).astype(value.dtype).transpose(0, 2, 1, 3)


def relative_index(window: int) -> np.ndarray:
    """Row of a table of (2 * window - 1)^2 biases for every pair of the tokens of a square window, int64 [window^2, window^2] (Swin)."""
    y, x = (axis.ravel() for axis in np.mgrid[:window, :window])
    return (y[:, None] - y[None] + window - 1) * (2 * window - 1) + x[:, None] - x[None] + window - 1
