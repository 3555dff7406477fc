"""Bicubic resizing as torch does it, as two small matrix products."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.typing import Array


@functools.lru_cache(maxsize=64)
def bicubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights of one axis, float32 [size_out, size_in], computed in float64: cubic convolution with a = -0.75, half-pixel centres, the edge
    pixel repeated, no antialiasing. Rows sum to 1. Read-only.

    Source: torch.nn.functional.interpolate(mode="bicubic", align_corners=False).
    """
    a = -0.75
    position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    low = np.floor(position).astype(int)
    share = position - low
    near = lambda t: ((a + 2) * t - (a + 3)) * t * t + 1
    far = lambda t: ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    taps = (far(share + 1), near(share), near(1 - share), far(2 - share))
    matrix = np.zeros((size_out, size_in))
    for offset, weight in zip((-1, 0, 1, 2), taps, strict=True):
        np.add.at(matrix, (np.arange(size_out), np.clip(low + offset, 0, size_in - 1)), weight)
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def bicubic(x: Array, size: tuple[int, int]) -> Array:
    """Bicubic resize of float [B,H,W,C] to [B,*size,C] in x's dtype, computed in float32. Own size: x itself."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = bicubic_matrix(x.shape[1], size[0]), bicubic_matrix(x.shape[2], size[1])
    y = jnp.einsum("yh,bhwc,xw->byxc", rows, x.astype(jnp.float32), columns, precision=lax.Precision.HIGHEST)
    return y.astype(x.dtype)
