"""Sliding windows: an image wider than the network's crop is read in overlapping windows and their logits are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array


def starts(size: int, window: int, stride: int) -> np.ndarray:
    """First pixel of each window along one axis, int32 [n]. The last windows are moved back so that they end at the border.

    Every pixel is covered, neighbours are at most `stride` apart; one window where the axis is no longer than `window`.
    """
    if window < 1 or not 1 <= stride <= window:
        raise ConfigError(f"window={window}, stride={stride}: expected 1 <= stride <= window, or pixels between windows are never seen")
    count = max(size - window + stride - 1, 0) // stride + 1
    return np.minimum(np.arange(count) * stride, max(size - window, 0)).astype(np.int32)


def coverage(size: int, window: int, first: np.ndarray) -> np.ndarray:
    """How many of the windows that start at `first` cover each pixel of one axis, float32 [size]."""
    pixel = np.arange(size)[:, None]
    return ((pixel >= first) & (pixel < first + window)).sum(1).astype(np.float32)


def slide(function: Callable[[Array], Array], image: Array, *, window: tuple[int, int], stride: tuple[int, int], batch: int = 1) -> Array:
    """Mean over windows of function(window [N,h,w,C]) -> [N,h,w,K] at each pixel of image [B,H,W,C]: [B,H,W,K] in the function's dtype.

    window, stride: (height, width) in pixels; a window longer than the image is cut to it. batch: windows of each image that go through
    the function at once: memory grows with it, the program is one scan over them whatever their number.
    Source: mmseg EncoderDecoder.slide_inference (logits summed, divided by the count of windows over each pixel).
    """
    rows, height, width, channels = image.shape
    window = min(window[0], height), min(window[1], width)
    stride = min(stride[0], window[0]), min(stride[1], window[1])
    tops, lefts = starts(height, window[0], stride[0]), starts(width, window[1], stride[1])
    corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), -1).reshape(-1, 2)
    batch = min(batch, len(corners))
    filler = -len(corners) % batch  # the last group is filled up with a window that counts for nothing
    weight = np.concatenate([np.ones(len(corners), np.float32), np.zeros(filler, np.float32)]).reshape(-1, batch)
    corners = np.concatenate([corners, corners[-1:].repeat(filler, 0)]).reshape(-1, batch, 2)
    out = jax.eval_shape(function, jax.ShapeDtypeStruct((rows * batch, *window, channels), image.dtype))

    def group(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        places, weights = part
        cut = [lax.dynamic_slice(image, (0, *place, 0), (rows, *window, channels)) for place in places]
        logits = function(jnp.stack(cut, 1).reshape(-1, *window, channels)).reshape(rows, batch, *window, -1)
        for n, place in enumerate(places):
            before = lax.dynamic_slice(total, (0, *place, 0), (rows, *window, total.shape[-1]))
            total = lax.dynamic_update_slice(total, before + weights[n].astype(out.dtype) * logits[:, n], (0, *place, 0))
        return total, None

    total = jnp.zeros((rows, height, width, out.shape[-1]), out.dtype)
    total, _ = lax.scan(group, total, (jnp.asarray(corners), jnp.asarray(weight)))
    count = coverage(height, window[0], tops)[:, None] * coverage(width, window[1], lefts)
    return total / jnp.asarray(count, out.dtype)[..., None]
