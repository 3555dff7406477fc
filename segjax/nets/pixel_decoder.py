"""Mask2Former's pixel decoder: deformable attention among three maps, then one step down a pyramid (Cheng et al. 2022, arXiv 2112.01527).

Source: mask2former/modeling/pixel_decoder/msdeformattn.py of facebookresearch/Mask2Former. Positions in the maps stay float32 whatever
the compute dtype (the original runs all of it in float32); there is no dropout, as in every public configuration.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import Conv, Dense, GroupNorm, LayerNorm
from segjax.nets.scan import scanned
from segjax.ops.deformable import deformable_attention
from segjax.ops.positions import sine_positions
from segjax.ops.resize import bilinear
from segjax.typing import Array

LEVELS = 3
"""Maps that attend to each other: the coarsest three of the backbone."""
XAVIER = nn.initializers.xavier_uniform()


def ring(heads: int, levels: int, points: int) -> np.ndarray:
    """The first bias of the sampling offsets, float32 [heads * levels * points * 2]: head h looks along 2 pi h / heads, point p as far as
    p + 1 pixels along x or y."""
    angle = 2 * np.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    far = np.arange(1, points + 1)[:, None]
    return np.broadcast_to(direction[:, None, None] * far, (heads, levels, points, 2)).reshape(-1).astype(np.float32)


def centres(shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """(x, y) of every pixel of the maps in turn, as shares of its map's width and height, float32 [S,2]."""
    grids = [np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1) for h, w in shapes]
    return np.concatenate([grid.reshape(-1, 2) for grid in grids]).astype(np.float32)


class DeformableSelfAttention(nn.Module):
    """Every pixel of the maps reads `points` places of each map for each head. x, position [B,S,C]; shapes as `deformable_attention`."""

    heads: int
    points: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, position: Array, shapes: tuple[tuple[int, int], ...]) -> Array:
        b, s, c = x.shape
        if c % self.heads:
            raise ConfigError(f"pixel decoder: {c} channels do not divide into {self.heads} heads: set model.heads or model.channels")
        several = (b, s, self.heads, len(shapes), self.points)
        asked, zeros, count = x.astype(jnp.float32) + position, nn.initializers.zeros, self.heads * len(shapes) * self.points
        offsets = Dense(2 * count, use_bias=False, kernel_init=zeros, name="sampling_offsets")(asked)
        first = lambda _: jnp.asarray(ring(self.heads, len(shapes), self.points))
        offsets = (offsets + self.param("sampling_offsets_bias", first)).reshape(*several, 2)
        weight = Dense(count, kernel_init=zeros, name="attention_weights")(asked).reshape(b, s, self.heads, -1)
        size = np.asarray([(width, height) for height, width in shapes], np.float32)
        locations = offsets / size[:, None] + centres(shapes)[:, None, None, None]
        value = Dense(c, kernel_init=XAVIER, dtype=self.dtype, name="value_proj")(x).reshape(b, s, self.heads, -1)
        mixed = deformable_attention(value, shapes, locations, jax.nn.softmax(weight).reshape(several))
        return Dense(c, kernel_init=XAVIER, dtype=self.dtype, name="output_proj")(mixed.reshape(b, s, c))


class EncoderLayer(nn.Module):
    """Deformable self-attention and an MLP with ReLU, post-norm residuals. Sows its output as `output`."""

    heads: int
    points: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, position: Array, shapes: tuple[tuple[int, int], ...]) -> tuple[Array, None]:
        norm = lambda name: LayerNorm(dtype=self.dtype, name=name)
        attention = DeformableSelfAttention(self.heads, self.points, self.dtype, name="self_attn")
        x = norm("norm1")(x + attention(x, position, shapes))
        y = nn.relu(Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="linear1")(x))
        x = norm("norm2")(x + Dense(x.shape[-1], kernel_init=XAVIER, dtype=self.dtype, name="linear2")(y))
        self.sow("intermediates", "output", x)
        return x, None


class PixelDecoder(nn.Module):
    """Four maps of a backbone, fine to coarse -> (mask features [B,h,w,mask_channels] at the first one's size, three maps [B,.,.,channels],
    coarse to fine).

    channels: a multiple of 32, the groups of every GroupNorm. fpn_levels: how many of the finest maps the pyramid goes down to; with 1 (all
    public models) the mask features have the first map's size, with 0 the second's.
    """

    channels: int = 256
    mask_channels: int = 256
    heads: int = 8
    points: int = 4
    layers: int = 6
    hidden: int = 1024
    fpn_levels: int = 1
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, list[Array]]:
        if self.channels % 32 or len(maps) != LEVELS + 1:
            raise ConfigError(f"pixel decoder: {len(maps)} maps to {self.channels} channels: expected 4 maps and a multiple of 32 channels")
        shared: dict[str, Any] = dict(kernel_init=XAVIER, dtype=self.dtype)
        norm = lambda name: GroupNorm(dtype=self.dtype, name=name)
        deep = [
            norm(f"input_proj_{n}_norm")(Conv(self.channels, (1, 1), name=f"input_proj_{n}", **shared)(x))
            for n, x in enumerate(maps[:0:-1])
        ]
        deep = self._encoded(deep)
        fine = deep[-1]
        for n in reversed(range(self.fpn_levels)):
            side = norm(f"adapter_{n + 1}_norm")(Conv(self.channels, (1, 1), use_bias=False, name=f"adapter_{n + 1}", **shared)(maps[n]))
            fine = side + bilinear(fine, (side.shape[1], side.shape[2]))
            fine = nn.relu(norm(f"layer_{n + 1}_norm")(Conv(self.channels, use_bias=False, name=f"layer_{n + 1}", **shared)(fine)))
        return Conv(self.mask_channels, (1, 1), name="mask_features", **shared)(fine), deep

    def _encoded(self, maps: Sequence[Array]) -> list[Array]:
        """The maps [B,.,.,channels] after all layers."""
        shapes = tuple((x.shape[1], x.shape[2]) for x in maps)
        flat = lambda x: x.reshape(*x.shape[:-3], -1, self.channels)
        level = self.param("level_embed", nn.initializers.normal(1.0), (len(maps), self.channels))
        position = jnp.concatenate([flat(sine_positions(*shape, self.channels)) + level[n] for n, shape in enumerate(shapes)])
        layers = scanned(EncoderLayer, self.layers, unroll=self.unroll)
        x = jnp.concatenate([flat(x) for x in maps], 1)
        x, _ = layers(self.heads, self.points, self.hidden, self.dtype, name="layers")(x, position, shapes)
        cuts = np.cumsum([height * width for height, width in shapes])[:-1]
        return [part.reshape(len(part), *shape, -1) for part, shape in zip(jnp.split(x, cuts, 1), shapes, strict=True)]
