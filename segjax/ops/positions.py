"""Sine positions of the pixels of a map, as detection transformers add them to queries and keys."""

import jax.numpy as jnp
import numpy as np

from segjax.typing import Array


def sine_positions(height: int, width: int, channels: int, temperature: float = 10000.0) -> Array:
    """float32 [height, width, channels]: half of the channels tell the row, the other half the column.

    Pixel i of n lies at 2 pi (i + 1) / (n + 1e-6); pairs of channels are sine and cosine of that over temperature^(k / pairs).
    Source: PositionEmbeddingSine(normalize=True) of facebookresearch/detr and its heirs.
    """
    rows, columns = (_along(size, channels // 2, temperature) for size in (height, width))
    shape = (height, width, channels // 2)
    return jnp.concatenate([jnp.broadcast_to(rows[:, None], shape), jnp.broadcast_to(columns[None], shape)], -1)


def _along(size: int, channels: int, temperature: float) -> np.ndarray:
    position = np.arange(1, size + 1) / (size + 1e-6) * 2 * np.pi
    channel = np.arange(channels)
    angle = position[:, None] / temperature ** (2 * (channel // 2) / channels)
    return np.where(channel % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
