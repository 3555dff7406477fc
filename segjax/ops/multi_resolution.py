"""HRDA: a coarse answer for the whole crop, a fine one for a window of it, and a learned weight between them.

Positions of a window are traced numbers, its size is static: one program serves every step.
Source: lhoyer/HRDA, mmseg/models/decode_heads/hrda_head.py and segmentors/hrda_encoder_decoder.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.ops.resize import bilinear
from segjax.ops.windows import coverage, starts
from segjax.typing import Array, Key


def detail_corner(key: Key, size: tuple[int, int], window: tuple[int, int], *, multiple: int = 8) -> Array:
    """Top left corner (y, x) of a random window in a crop of `size`, int32 [2], each a multiple of `multiple` pixels (stride / scale).

    One corner for the whole batch, drawn anew at every forward. As the code draws it: the last place is floor((margin + 1) / multiple) - 1
    multiples off, so the far border is not reached (512 in 1024: 0, 8, ..., 504).
    """
    if window[0] > size[0] or window[1] > size[1]:
        raise ConfigError(f"window {window} is larger than the crop {size}")
    places = np.array([max((side - length + 1) // multiple, 1) for side, length in zip(size, window, strict=True)])
    return jax.random.randint(key, (2,), 0, places) * multiple


def cut(x: Array, corner: Array, window: tuple[int, int]) -> Array:
    """The window at `corner` of images [B,H,W,C] or maps [B,H,W]."""
    return lax.dynamic_slice(x, (0, corner[0], corner[1], *(0,) * (x.ndim - 3)), (x.shape[0], *window, *x.shape[3:]))


def fuse(context: Array, detail: Array, attention: Array, corner: Array | None = None, *, ratio: int = 2) -> tuple[Array, Array]:
    """up(a) * detail + up((1 - a) * context) with a = sigmoid(attention): the fused logits [B,ratio h,ratio w,K] and (1 - a) * context.

    context [B,h,w,K]; attention [B,h,w,K] or [B,h,w,1] logits; up: bilinear by `ratio`, half-pixel centres. detail: logits of the same
    field at `ratio` times the resolution, or of the window that begins at `corner` (int32 [2], in pixels of the fused map; training):
    then a is 0 outside it, at the low resolution, so that its border is soft. ratio: detail's scale over context's.
    """
    size = (context.shape[1] * ratio, context.shape[2] * ratio)
    a = jax.nn.sigmoid(attention.astype(jnp.float32))
    if corner is None:
        if detail.shape[1:3] != size:
            raise ConfigError(f"detail {detail.shape[1:3]} for a fused map of {size}: pass the corner of its window")
        placed = detail.astype(jnp.float32)
    else:
        a = a * _window_mask((context.shape[1], context.shape[2]), corner, (detail.shape[1], detail.shape[2]), ratio)[..., None]
        blank = jnp.zeros((detail.shape[0], *size, detail.shape[3]), jnp.float32)
        placed = lax.dynamic_update_slice(blank, detail.astype(jnp.float32), (0, corner[0], corner[1], 0))
    masked = (1 - a) * context.astype(jnp.float32)
    return bilinear(a, size) * placed + bilinear(masked, size), masked


def _window_mask(size: tuple[int, int], corner: Array, window: tuple[int, int], ratio: int) -> Array:
    """Where the window lies in the coarse map: float32 [*size]. Its edges are rounded down, as the code's int() does."""
    first, beyond = corner // ratio, (corner + np.array(window)) // ratio
    inside = [(pixel >= first[axis]) & (pixel < beyond[axis]) for axis, pixel in enumerate(map(jnp.arange, size))]
    return (inside[0][:, None] & inside[1]).astype(jnp.float32)


def window_corners(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Corners of the windows that cover a crop, row by row, int32 [N,2]: nine for 512 in 1024 with the teacher's stride of 256."""
    tops, lefts = (starts(*axis) for axis in zip(size, window, stride, strict=True))
    return np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)


def cut_windows(image: Array, corners: np.ndarray, window: tuple[int, int]) -> Array:
    """All windows of each image as one batch, an image's own next to each other: [B,H,W,C] -> [B * N,*window,C]."""
    parts = [image[:, y : y + window[0], x : x + window[1]] for y, x in corners.tolist()]
    return jnp.stack(parts, 1).reshape(-1, *window, image.shape[-1])


def merge_windows(logits: Array, corners: np.ndarray, size: tuple[int, int]) -> Array:
    """The mean over the windows at each pixel: logits [B * N,h,w,K] in `cut_windows`' order, corners [N,2] and size in their pixels.

    -> float32 [B,*size,K]. Raises ConfigError where the windows leave a pixel out.
    """
    height, width, classes = logits.shape[1:]
    parts = logits.astype(jnp.float32).reshape(-1, len(corners), height, width, classes)
    total = jnp.zeros((parts.shape[0], *size, classes), jnp.float32)
    for n, (y, x) in enumerate(corners.tolist()):
        total = total.at[:, y : y + height, x : x + width].add(parts[:, n])
    count = coverage(size[0], height, np.unique(corners[:, 0]))[:, None] * coverage(size[1], width, np.unique(corners[:, 1]))
    if not count.all():
        raise ConfigError(f"windows of {height}x{width} at {corners.tolist()} do not cover {size}")
    return total / jnp.asarray(count)[..., None]
