"""Attention of an image's tokens to each other with decomposed relative positions; the bias of all pairs is never stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.resize import interpolation_matrix
from segjax.typing import Array

BLOCK_CPU, BLOCK_TPU, BLOCK = 128, 128, 512
"""Queries of a large image that are worked on at a time: on CPU (measured: 128 is 1.7 times as fast as 256, twice as 1024); on TPU as many
as have their logits in vector memory; elsewhere more of them, to keep the device busy."""
AT_ONCE = 1024
"""Tokens up to which an image, or a window of one, is worked on as a whole."""


def relative_vectors(table: Array, size: int) -> Array:
    """R[i, j] = table[i - j + size - 1], float32 [size,size,D], of a table [L,D] of relative positions.

    A table of another length than 2 * size - 1 is first resized linearly (half-pixel centres), as ViTDet's `get_rel_pos` does.
    """
    length, table = 2 * size - 1, table.astype(jnp.float32)
    if table.shape[0] != length:
        table = jnp.matmul(interpolation_matrix(table.shape[0], length), table, precision=lax.Precision.HIGHEST)
    index = np.arange(size)[:, None] - np.arange(size)[None] + size - 1
    return table[index]


def relative_attention(
    query: Array, key: Array, value: Array, rows: Array | None = None, columns: Array | None = None, *, block: int | None = None
) -> Array:
    """Every token of an image to every other: query, key, value [B,H,W,N,D] with N heads, returns [B,H,W,N,D] of value's type.

    logits(q, k) = query(q) . key(k) / sqrt(D) + query(q) . rows[y_q, y_k] + query(q) . columns[x_q, x_k]; rows [H,H,D] and columns
    [W,W,D] by `relative_vectors`, or None for both. The two last terms are kept apart, (H + W) numbers a token instead of H * W, and are
    added while the softmax is computed, or on TPUs in bfloat16 by the product that makes the logits (`_side_by_side`); of large images some
    rows are worked on at a time (`block` tokens, default by platform), also in the gradient. Softmax in float32.
    Source: `add_decomposed_rel_pos` in facebookresearch/segment-anything modeling/image_encoder.py.
    """
    arguments = query, key, value, rows, columns
    form = lambda block, **kind: functools.partial(_in_blocks, block=block, **kind)
    if block is not None:
        return form(block)(*arguments)
    large, joined = query.shape[1] * query.shape[2] > AT_ONCE, rows is not None and query.dtype == jnp.bfloat16
    if not large and not joined:
        return form(AT_ONCE)(*arguments)
    blocks = (BLOCK_CPU, BLOCK_TPU, BLOCK) if large else (AT_ONCE,) * 3
    return lax.platform_dependent(*arguments, cpu=form(blocks[0]), tpu=form(blocks[1], joined=joined), default=form(blocks[2]))


def _in_blocks(
    query: Array, key: Array, value: Array, rows: Array | None, columns: Array | None, *, block: int, joined: bool = False
) -> Array:
    """block: tokens at a time. joined: let one product make the logits (`_side_by_side`)."""
    b, h, w, n, d = query.shape
    query, key, value = (x.transpose(0, 3, 1, 2, 4) for x in (query, key, value))
    terms = [query * jnp.asarray(d**-0.5, query.dtype)]
    if rows is not None and columns is not None:
        terms.append(jnp.einsum("bnyxd,ykd->bnyxk", query, rows.astype(query.dtype), preferred_element_type=jnp.float32))
        terms.append(jnp.einsum("bnyxd,xkd->bnyxk", query, columns.astype(query.dtype), preferred_element_type=jnp.float32))
    keys, values = key.reshape(b, n, h * w, d), value.reshape(b, n, h * w, d)
    if joined:
        terms, keys = _side_by_side(terms, keys, (h, w))

    attend = lambda terms: _attend(terms, keys, values, (h, w))
    step = h if h * w <= block else max(s for s in range(1, h + 1) if h % s == 0 and (s == 1 or s * w <= block))
    if step == h:
        mixed = attend(terms)
    else:
        parts = [jnp.moveaxis(x.reshape(b, n, h // step, step, w, -1), 2, 0) for x in terms]
        mixed = jnp.moveaxis(lax.map(jax.checkpoint(attend), parts), 0, 2)
    return mixed.reshape(b, n, h, w, -1).transpose(0, 2, 3, 1, 4)


def _attend(terms: list[Array], keys: Array, values: Array, grid: tuple[int, int]) -> Array:
    """Queries [B,N,s,W,D] of s rows (scaled, then their row and column terms, if any) over all keys [B,N,H*W,D]: [B,N,s*W,D]."""
    query, *relative = terms
    b, n, s, w, d = query.shape
    logits = jnp.matmul(query.reshape(b, n, s * w, d), keys.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if relative:
        rows, columns = (x.reshape(b, n, s * w, -1) for x in relative)
        logits = logits.reshape(b, n, s * w, *grid) + rows[..., :, None] + columns[..., None, :]
    over = tuple(range(3, logits.ndim))
    weight = jnp.exp(logits - lax.stop_gradient(logits.max(over, keepdims=True)))
    flat = weight.reshape(b, n, s * w, -1).astype(values.dtype)
    mixed = jnp.matmul(flat, values, preferred_element_type=jnp.float32)
    return (mixed / weight.sum(over)[..., None]).astype(values.dtype)


def _side_by_side(terms: list[Array], keys: Array, grid: tuple[int, int]) -> tuple[list[Array], Array]:
    """The query [B,N,H,W,D] with its row and column terms beside it [B,N,H,W,D+2H+2W], and the keys [B,N,H*W,D] with what selects the two
    terms that each gets: one product makes the whole logits.

    A term of float32 is two numbers of the query's type, whose sum has twice its digits. A TPU lays terms that are added to the logits out
    over all pairs of tokens: 1.2 GB of traffic in a global layer of SAM ViT-H, and 0.3 so (`scripts/tpu_forms.py`).
    """
    query, *relative = terms
    rows, columns = (np.arange(grid[0] * grid[1]) // grid[1], np.arange(grid[0] * grid[1]) % grid[1])
    queries, selectors = [query], []
    for term, place, size in zip(relative, (rows, columns), grid, strict=True):
        high = term.astype(query.dtype)
        queries += [high, (term - high.astype(term.dtype)).astype(query.dtype)]
        selectors += [np.eye(size)[place]] * 2
    chosen = jnp.asarray(np.concatenate(selectors, -1), keys.dtype)
    keys = jnp.concatenate([keys, jnp.broadcast_to(chosen, (*keys.shape[:2], *chosen.shape))], -1)
    return [jnp.concatenate(queries, -1)], keys
