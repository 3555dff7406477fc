"""Swin transformer (Liu et al. 2021, arXiv 2103.14030) as the backbone of dense prediction, every two blocks of a stage scanned as one.

Every other block attends in windows that are shifted by half a window; windows are never made smaller, whatever the size of the map, and
maps are filled up with zeros to whole windows after the norm. Source: mask2former/modeling/backbone/swin.py of
facebookresearch/Mask2Former and SwinBackbone of transformers, which leaves the drop path of the MLP's branch out.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import ACTIVATIONS, Conv, Dense, DropPath, LayerNorm
from segjax.nets.sam_encoder import in_windows
from segjax.nets.scan import scanned
from segjax.ops.attention_with_bias import attention_with_bias, relative_index
from segjax.typing import Array

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=7),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window=7),
    "base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12),
    "large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12),
}
"""Fields of `Swin` in the four public sizes."""


class WindowAttention(nn.Module):
    """Self-attention with a learned bias for every relative position, within windows [N,w,w,C]. mask: as `attention_with_bias`."""

    num_heads: int
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        b, window, _, c = x.shape
        qkv = Dense(3 * c, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(x)
        query, key, value = (part.reshape(b, window**2, self.num_heads, -1) for part in jnp.split(qkv, 3, -1))
        init = nn.initializers.truncated_normal(0.02)
        table = self.param("relative_position_bias_table", init, ((2 * window - 1) ** 2, self.num_heads))
        y = attention_with_bias(query, key, value, table[relative_index(window)].transpose(2, 0, 1), mask)
        return Dense(c, dtype=self.dtype, name="proj")(y.reshape(x.shape))


class Block(nn.Module):
    """Attention in windows that lie `shift` pixels further down and right, then an MLP; pre-norm residuals with drop path."""

    num_heads: int
    window: int
    shift: int
    hidden: int
    qkv_bias: bool = True
    activation: str = "gelu"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array, train: bool) -> Array:
        attention = WindowAttention(self.num_heads, self.qkv_bias, self.dtype, name="attn")
        y = self._shifted(attention, LayerNorm(self.epsilon, self.dtype, name="norm1")(x))
        x = x + DropPath(name="drop1")(y, rate, train)
        y = Dense(self.hidden, dtype=self.dtype, name="fc1")(LayerNorm(self.epsilon, self.dtype, name="norm2")(x))
        y = Dense(x.shape[-1], dtype=self.dtype, name="fc2")(ACTIVATIONS[self.activation](y))
        return x + DropPath(name="drop2")(y, rate, train)

    def _shifted(self, attention: WindowAttention, x: Array) -> Array:
        """The attention over x [B,H,W,C]. What the shift brings from one edge to the other is kept apart from what lies there."""
        _, h, w, _ = x.shape
        rows, columns = (-(-size // self.window) * self.window for size in (h, w))
        x = jnp.pad(x, ((0, 0), (0, rows - h), (0, columns - w), (0, 0)))
        if not self.shift:
            return in_windows(lambda y: attention(y, None), x, self.window)[:, :h, :w]
        region = self._regions(rows)[:, None] * 3 + self._regions(columns)[None]
        size = self.window
        region = region.reshape(rows // size, size, columns // size, size).swapaxes(1, 2).reshape(-1, size**2)
        mask = jnp.asarray(region)[:, :, None] == jnp.asarray(region)[:, None, :]
        y = in_windows(lambda y: attention(y, mask), jnp.roll(x, (-self.shift, -self.shift), (1, 2)), self.window)
        return jnp.roll(y, (self.shift, self.shift), (1, 2))[:, :h, :w]

    def _regions(self, size: int) -> np.ndarray:
        """0, 1 or 2 along a shifted axis: whole windows, the last window's first part, what came round from the other edge."""
        pixel = np.arange(size)
        return (pixel >= size - self.window).astype(np.int32) + (pixel >= size - self.shift)


class Pair(nn.Module):
    """A block and one whose windows are shifted by half a window. rate [2]: their chances of drop path."""

    block: Any  # keyword arguments of both, as a tuple of pairs
    window: int

    @nn.compact
    def __call__(self, x: Array, rate: Array, train: bool) -> tuple[Array, None]:
        x = Block(window=self.window, shift=0, **dict(self.block), name="plain")(x, rate[0], train)
        return Block(window=self.window, shift=self.window // 2, **dict(self.block), name="shifted")(x, rate[1], train), None


class PatchMerging(nn.Module):
    """2x2 pixels side by side, normalised, to twice the channels; zeros beyond an odd edge."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        _, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return Dense(2 * c, use_bias=False, dtype=self.dtype, name="reduction")(LayerNorm(dtype=self.dtype, name="norm")(x))


class Swin(nn.Module):
    """Backbone over normalised images [B,H,W,3]: {res2, res3, res4, res5} at strides 4 to 32 (sizes rounded up), each with its own norm.

    Params `layers_N/pairs` (stacked), `layers_N/blockM` (the last of an odd number of blocks), `layers_N_downsample`, `normN`.
    drop_path: of the last block, growing linearly from 0. final_norm: also `last`, the last stage's map under the norm that classifiers of
    images put there.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    patch_size: int = 4
    qkv_bias: bool = True
    drop_path: float = 0.3
    activation: str = "gelu"
    epsilon: float = 1e-5
    final_norm: bool = False
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> dict[str, Array]:
        widths = [self.embed_dim * 2**n for n in range(len(self.depths))]
        if len(self.num_heads) != len(widths) or any(width % heads for width, heads in zip(widths, self.num_heads, strict=True)):
            raise ConfigError(f"Swin with num_heads {self.num_heads}: expected one a stage, dividing its channels {widths}")
        x = jnp.pad(x, ((0, 0), *((0, -size % self.patch_size) for size in x.shape[1:3]), (0, 0)))
        patch = (self.patch_size, self.patch_size)
        x = Conv(self.embed_dim, patch, self.patch_size, padding=0, dtype=self.dtype, name="patch_embed_proj")(x)
        x = LayerNorm(dtype=self.dtype, name="patch_embed_norm")(x)
        rates, result = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32), {}
        for n, (depth, heads, width) in enumerate(zip(self.depths, self.num_heads, widths, strict=True)):
            if n > 0:
                x = PatchMerging(self.dtype, name=f"layers_{n - 1}_downsample")(x)
            stage = _Stage(self._block(heads, width), self.window, self.unroll, name=f"layers_{n}")
            x = stage(x, rates[:depth], train)
            rates = rates[depth:]
            result[f"res{n + 2}"] = LayerNorm(dtype=self.dtype, name=f"norm{n}")(x)
        return result | ({"last": LayerNorm(self.epsilon, self.dtype, name="norm")(x)} if self.final_norm else {})

    def _block(self, heads: int, width: int) -> tuple[tuple[str, Any], ...]:
        """Keyword arguments of the blocks of a stage."""
        shared = ((name, getattr(self, name)) for name in ("qkv_bias", "activation", "epsilon", "dtype"))
        return (("num_heads", heads), ("hidden", int(width * self.mlp_ratio)), *shared)


class _Stage(nn.Module):
    """The blocks of a stage, with and without shift in turn. rates [depth]: their chances of drop path."""

    block: Any
    window: int
    unroll: int

    @nn.compact
    def __call__(self, x: Array, rates: np.ndarray, train: bool) -> Array:
        pairs = len(rates) // 2
        if pairs:
            blocks = scanned(Pair, pairs, in_axes=(0, nn.broadcast), unroll=self.unroll)(self.block, self.window, name="pairs")
            x, _ = blocks(x, jnp.asarray(rates[: 2 * pairs].reshape(pairs, 2)), train)
        if len(rates) % 2:
            x = Block(window=self.window, shift=0, **dict(self.block), name=f"block{len(rates) - 1}")(x, jnp.asarray(rates[-1]), train)
        return x
