"""From one class and one mask for every query to a score for every class at every pixel."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.resize import between, taps
from segjax.typing import Array

ROWS = 32
"""Rows of the answer that are worked on at a time: the masks of all queries are never stored at its size."""


def semantic_map(class_logits: Array, mask_logits: Array, size: tuple[int, int], crop: tuple[int, int] | None = None) -> Array:
    """sum over queries of softmax(class)[k] * sigmoid(mask at the pixel), float32 [B,*crop,K]: class k's evidence, 0 to Q.

    class_logits [B,Q,K+1], the last class "no object", which only takes from the others. mask_logits [B,h,w,Q], first resized bilinearly
    to `size` (half-pixel centres); of which the upper left `crop` (default: all) is answered.
    Source: `semantic_inference` of facebookresearch/Mask2Former maskformer_model.py.
    """
    height, width = crop or size
    share = jax.nn.softmax(class_logits.astype(jnp.float32))[..., :-1]
    rows, columns = (taps(full, length, kept) for full, length, kept in zip(mask_logits.shape[1:3], size, (height, width), strict=True))
    blocks = -(-height // ROWS)
    fill = lambda x: jnp.asarray(np.resize(x, blocks * ROWS).reshape(blocks, ROWS))

    def block(own: tuple[Array, ...]) -> Array:
        logits = between(between(mask_logits.astype(jnp.float32), own, 1), columns, 2)
        return jnp.einsum("brwq,bqk->brwk", jax.nn.sigmoid(logits), share)

    answer = lax.map(block, tuple(fill(x) for x in rows))
    answer = jnp.moveaxis(answer, 0, 1).reshape(len(mask_logits), blocks * ROWS, width, -1)
    return answer[:, :height]
