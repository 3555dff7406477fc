"""SAM's image encoder: a ViT with windowed blocks and a few global ones, decomposed relative positions in both (Li et al. 2022, ViTDet).

Blocks repeat with a period (a run of windowed blocks, then a global one), so a period is scanned and the windowed blocks in it are scanned
again: two block bodies are compiled, whatever the depth. Where the runs before the global blocks differ, each stretch of equal ones is a
scan of its own. Parameters of a stretch lie under `blocks_START_RUN` (its first block, its run of windowed blocks): `windowed` with two
leading axes [periods, run], `global` with one.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import Conv, Dense, LayerNorm, gelu
from segjax.nets.scan import scanned
from segjax.ops.bicubic import bicubic
from segjax.ops.relative_attention import relative_attention, relative_vectors
from segjax.typing import Array


class RelativeAttention(nn.Module):
    """Multi-head self-attention over [B,H,W,C]. grid: tokens a side that the tables of relative positions are stored for, 0 for none."""

    num_heads: int
    grid: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        qkv = Dense(3 * c, dtype=self.dtype, name="qkv")(x).reshape(b, h, w, 3, self.num_heads, c // self.num_heads)
        query, key, value = (qkv[:, :, :, i] for i in range(3))
        rows = columns = None
        if self.grid:
            shape = (2 * self.grid - 1, c // self.num_heads)
            tables = [self.param(name, nn.initializers.zeros, shape) for name in ("rel_pos_h", "rel_pos_w")]
            rows, columns = (relative_vectors(table, size) for table, size in zip(tables, (h, w), strict=True))
        y = relative_attention(query, key, value, rows, columns)
        return Dense(c, dtype=self.dtype, name="proj")(y.reshape(b, h, w, c))


class MLP(nn.Module):
    """Two dense layers with a GELU between."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = gelu(Dense(self.hidden, dtype=self.dtype, name="lin1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="lin2")(y)


class Block(nn.Module):
    """LayerNorm, attention (in windows of `window` tokens a side, or over the whole image for 0), LayerNorm, MLP; pre-norm residuals."""

    num_heads: int
    mlp_dim: int
    window: int
    grid: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        attention = RelativeAttention(self.num_heads, self.grid, self.dtype, name="attn")
        y = LayerNorm(1e-6, self.dtype, name="norm1")(x)
        x = x + (in_windows(attention, y, self.window) if self.window else attention(y))
        y = LayerNorm(1e-6, self.dtype, name="norm2")(x)
        return x + MLP(self.mlp_dim, self.dtype, name="mlp")(y), None


def in_windows(function, x: Array, size: int, outside: Array | None = None) -> Array:
    """`function` on windows [B*,size,size,C] of x [B,H,W,C]; x is filled up at its right and lower edge, which take part: with zeros or
    with `outside` [C]."""
    b, h, w, c = x.shape
    rows, columns = -(-h // size), -(-w // size)
    x = jnp.pad(x, ((0, 0), (0, rows * size - h), (0, columns * size - w), (0, 0)))
    if outside is not None and x.shape[1:3] != (h, w):
        inside = (np.arange(rows * size) < h)[:, None, None] & (np.arange(columns * size) < w)[:, None]
        x = jnp.where(inside, x, outside)
    x = x.reshape(b, rows, size, columns, size, c).swapaxes(2, 3).reshape(-1, size, size, c)
    y = function(x).reshape(b, rows, columns, size, size, -1).swapaxes(2, 3)
    return y.reshape(b, rows * size, columns * size, -1)[:, :h, :w]


def stretches(depth: int, global_blocks: tuple[int, ...]) -> list[tuple[int, int, int, bool]]:
    """(first block, windowed blocks of a period, periods, a global block ends each?) of every stretch of equal periods."""
    found: list[tuple[int, int, int, bool]] = []
    start = 0
    for index in sorted(global_blocks):
        run = index - start
        if found and found[-1][1] == run:
            found[-1] = (found[-1][0], run, found[-1][2] + 1, True)
        else:
            found.append((start, run, 1, True))
        start = index + 1
    return found if start == depth else [*found, (start, depth - start, 1, False)]


class Period(nn.Module):
    """`run` windowed blocks, scanned, and a global one behind them where `closed`."""

    run: int
    closed: bool
    window: int
    grid: int
    unroll: int
    block: Any  # keyword arguments of every Block, as a tuple of pairs

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        if self.run:
            x, _ = scanned(Block, self.run, unroll=self.unroll)(window=self.window, grid=self.window, **dict(self.block), name="windowed")(
                x, None
            )
        if self.closed:
            x, _ = Block(window=0, grid=self.grid, **dict(self.block), name="global")(x)
        return x, None


class Neck(nn.Module):
    """1x1 and 3x3 convolution to `features`, each without bias and with a LayerNorm over channels."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.features, (1, 1), use_bias=False, dtype=self.dtype, name="conv1")(x)
        x = LayerNorm(1e-6, self.dtype, name="layer_norm1")(x)
        x = Conv(self.features, (3, 3), use_bias=False, dtype=self.dtype, name="conv2")(x)
        return LayerNorm(1e-6, self.dtype, name="layer_norm2")(x)


class ImageEncoder(nn.Module):
    """Normalised images [B,H,W,3] -> features [B,H/patch,W/patch,out_channels]; H and W multiples of `patch`.

    image_size is the size that positions are stored for; at any other they are resized (bicubic the absolute ones, linear the relative
    ones). Source: facebookresearch/segment-anything modeling/image_encoder.py, which takes that one size alone.
    """

    image_size: int = 1024
    patch: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    out_channels: int = 256
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ConfigError(f"image of {x.shape[1]}x{x.shape[2]}: expected multiples of the patch, {self.patch}: pad it")
        if self.embed_dim % max(self.num_heads, 1) or not self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} does not divide into num_heads={self.num_heads}: set num_heads")
        grid = self.image_size // self.patch
        x = Conv(self.embed_dim, (self.patch, self.patch), self.patch, padding=0, dtype=self.dtype, name="patch_embed")(x)
        positions = self.param("pos_embed", nn.initializers.zeros, (1, grid, grid, self.embed_dim))
        x = x + bicubic(positions, (x.shape[1], x.shape[2])).astype(self.dtype)
        shared: dict[str, Any] = dict(window=self.window, grid=grid, unroll=self.unroll)
        block = (("num_heads", self.num_heads), ("mlp_dim", self.mlp_dim), ("dtype", self.dtype))
        for start, run, periods, closed in stretches(self.depth, self.global_blocks):
            x, _ = scanned(Period, periods)(run, closed, block=block, **shared, name=f"blocks_{start}_{run}")(x, None)
        return Neck(self.out_channels, self.dtype, name="neck")(x)
