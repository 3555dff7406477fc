"""Full-size work on low-resolution maps, one block of rows after another: the up-sampled maps never exist as a whole.

Inside a block classes stand before columns, [B,rows,K,W]: what reduces over K does so at full width.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.resize import interpolation_matrix
from segjax.typing import Array

CHUNK_BYTES = {"cpu": 5 << 19, "default": 64 << 20}
"""Full-resolution values held at a time: what stays in a CPU's cache, and enough work for an accelerator's every step."""

Chunks: TypeAlias = int | Literal["auto"]
"""Number of row blocks; "auto" fits a block to the platform's cache."""

Score: TypeAlias = Callable[[Array, tuple[Array, ...], Any, Any], tuple[Array, Array, Array]]
"""(logits [B,rows,K,W], other maps alike, blocks [B,rows,W] of the full-size maps, constants) -> (loss [B,rows,W], weight [B,rows,W],
d loss / d logits [B,rows,K,W])."""

_product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def upsampled_sum(
    score: Score,
    logits: Array,
    others: tuple[Array, ...],
    maps: Any,
    constants: Any,
    size: tuple[int, int],
    *,
    align_corners: bool,
    chunks: Chunks = "auto",
) -> tuple[Array, Array]:
    """(sum of weight * loss, sum of weight) of `score` at `size`, float32 scalars; loss may be NaN where weight is 0.

    logits float [B,h,w,K] and others (each [B,h',w',K']) are up-sampled bilinearly; maps: pytree of [B,*size]. Differentiable in logits
    alone, with the gradient that `score` states, computed in the pass that computes the value. score: a module-level function.
    """
    _check(size, chunks)
    others, maps, constants = lax.stop_gradient((others, maps, constants))
    return _sum(score, size, align_corners, chunks, logits, others, maps, constants)


def upsampled_map(
    function: Callable[[tuple[Array, ...], Any], Any],
    sources: tuple[Array, ...],
    maps: Any,
    size: tuple[int, int],
    *,
    align_corners: bool,
    chunks: Chunks = "auto",
) -> Any:
    """function(blocks [B,rows,K,W] of the up-sampled sources, blocks [B,rows,W] of maps) put together: pytree of [B,*size]. No gradient."""
    _check(size, chunks)
    sources, maps = lax.stop_gradient((tuple(sources), maps))

    def run(rows, sources, maps):
        plans, arrays = _plans(sources, size, rows, align_corners)

        def body(carry, block):
            places, parts = block
            full = tuple(plan.up(z, *place) for plan, z, place in zip(plans, arrays, places, strict=True))
            return carry, function(full, parts)

        _, found = lax.scan(body, None, (tuple(plan.places for plan in plans), _cut(maps, size, rows)))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, : size[0]], found)

    return _by_platform(run, sources, size, chunks, sources, maps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _sum(score, size, align_corners, chunks, logits, others, maps, constants):
    return _run_sum(score, size, align_corners, chunks, logits, others, maps, constants, gradient=False)[:2]


def _sum_forward(score, size, align_corners, chunks, logits, others, maps, constants):
    total, count, slope = _run_sum(score, size, align_corners, chunks, logits, others, maps, constants, gradient=True)
    return (total, count), slope.astype(logits.dtype)


def _sum_backward(score, size, align_corners, chunks, slope, cotangent):
    return (slope * cotangent[0]).astype(slope.dtype), None, None, None


_sum.defvjp(_sum_forward, _sum_backward)


def _run_sum(score, size, align_corners, chunks, logits, others, maps, constants, *, gradient):
    run = functools.partial(_scan_sum, score, size, align_corners, gradient)
    return _by_platform(run, (logits, *others), size, chunks, logits, others, maps, constants)


def _scan_sum(score, size, align_corners, gradient, rows, logits, others, maps, constants):
    """(sum, weight sum, gradient of the sum or 0)."""
    plans, arrays = _plans((logits, *others), size, rows, align_corners)

    def body(carry, block):
        total, count, slope = carry
        places, parts = block
        full, *rest = (plan.up(z, *place) for plan, z, place in zip(plans, arrays, places, strict=True))
        loss, weight, back = score(full, tuple(rest), parts, constants)
        total, count = total + jnp.sum(jnp.where(weight != 0, loss * weight, 0)), count + jnp.sum(weight)
        if gradient:
            weight = weight[:, :, None]
            slope = plans[0].add_down(slope, jnp.where(weight != 0, back * weight, 0), *places[0])
        return (total, count, slope), None

    zero = jnp.zeros((), jnp.float32)
    carry = (zero, zero, jnp.zeros_like(arrays[0]) if gradient else zero)
    blocks = (tuple(plan.places for plan in plans), _cut(maps, size, rows))
    (total, count, slope), _ = lax.scan(body, carry, blocks)
    return total, count, slope.swapaxes(2, 3) if gradient else slope


class _Plan:
    """How one map [B,h,K,w] becomes blocks of rows [B,rows,K,W], and their gradient its own."""

    def __init__(self, shape: tuple[int, ...], size: tuple[int, int], rows: int, align_corners: bool):
        self.batch, _, self.classes, self.w = shape
        first, weights = _row_blocks(shape[1], size[0], rows, align_corners)
        self.rows, self.width, self.touched = rows, size[1], weights.shape[2]
        # None: full-size logits (ENet's) have their columns already, and a product with 1 would be a fifth of its step's operations
        self.columns = None if self.w == self.width else jnp.asarray(interpolation_matrix(self.w, self.width, align_corners))
        self.places = jnp.asarray(first), jnp.asarray(weights)

    def up(self, z: Array, start: Array, mix: Array) -> Array:
        wide = lax.dynamic_slice_in_dim(z, start, self.touched, 1).reshape(-1, self.w)
        wide = wide if self.columns is None else _product(wide, self.columns.T)
        mix = jnp.broadcast_to(mix, (self.batch, *mix.shape))
        full = _product(mix, wide.reshape(self.batch, self.touched, self.classes * self.width))
        return full.reshape(self.batch, self.rows, self.classes, self.width)

    def add_down(self, slope: Array, back: Array, start: Array, mix: Array) -> Array:
        mix = jnp.broadcast_to(mix.T, (self.batch, *mix.T.shape))
        back = _product(mix, back.reshape(self.batch, self.rows, self.classes * self.width))
        back = back if self.columns is None else _product(back.reshape(-1, self.width), self.columns)
        back = back.reshape(self.batch, self.touched, self.classes, self.w)
        return lax.dynamic_update_slice_in_dim(slope, lax.dynamic_slice_in_dim(slope, start, self.touched, 1) + back, start, 1)


def _plans(sources: tuple[Array, ...], size: tuple[int, int], rows: int, align_corners: bool) -> tuple[list[_Plan], list[Array]]:
    arrays = [x.astype(jnp.float32).swapaxes(2, 3) for x in sources]
    return [_Plan(x.shape, size, rows, align_corners) for x in arrays], arrays


def _row_blocks(size_in: int, size_out: int, rows: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Interpolation matrix cut into blocks of `rows` outputs: first input row of each block [N], and weights [N,rows,touched]."""
    count = -(-size_out // rows)
    matrix = np.zeros((count * rows, size_in), np.float32)
    matrix[:size_out] = interpolation_matrix(size_in, size_out, align_corners)
    blocks = matrix.reshape(count, rows, size_in)
    used = np.any(blocks != 0, axis=1)
    first, last = used.argmax(axis=1), size_in - 1 - used[:, ::-1].argmax(axis=1)
    touched = int((last - first).max()) + 1
    first = np.minimum(first, size_in - touched)
    return first, np.stack([block[:, start : start + touched] for block, start in zip(blocks, first, strict=True)])


def _cut(maps: Any, size: tuple[int, int], rows: int) -> Any:
    """Each map [B,H,W] as blocks [N,B,rows,W], the last filled up with 255 in labels (ignored) and 0 in weights."""
    count = -(-size[0] // rows)

    def one(x):
        filler = 255 if jnp.issubdtype(x.dtype, jnp.integer) else 0
        padded = jnp.pad(x, ((0, 0), (0, count * rows - size[0]), (0, 0)), constant_values=filler)
        return padded.reshape(x.shape[0], count, rows, size[1]).swapaxes(0, 1)

    return jax.tree.map(one, maps)


def _by_platform(run, sources, size, chunks, *operands):
    """run(rows, *operands) with the rows a block that suit the platform, or with the block that the caller asked for."""
    height, width = size
    if chunks != "auto":
        return run(-(-height // chunks), *operands)
    row_bytes = 4 * width * sum(x.shape[0] * x.shape[-1] for x in sources)
    # a power of two divides the usual heights and strides, so that no block is padded or straddles one more row of logits
    choices = {name: min(height, 1 << max(0, (limit // row_bytes).bit_length() - 1)) for name, limit in CHUNK_BYTES.items()}
    if len(set(choices.values())) == 1:
        return run(choices["cpu"], *operands)
    return lax.platform_dependent(*operands, **{name: functools.partial(run, rows) for name, rows in choices.items()})


def _check(size: tuple[int, int], chunks: Chunks) -> None:
    if chunks != "auto" and not 1 <= chunks <= size[0]:
        raise ConfigError(f"chunks={chunks}: expected 'auto' or 1..{size[0]} (the full height)")
