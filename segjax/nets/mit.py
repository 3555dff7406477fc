"""Mix Transformer B0-B5 (SegFormer's and DAFormer's encoder), the blocks of each stage scanned.

Source: NVlabs/SegFormer mix_transformer.py; maps stay [B,H,W,C] instead of token lists. The public versions differ in the epsilon of their
LayerNorms alone: NVlabs and DAFormer 1e-6 in blocks and after stages but 1e-5 after patch and reduction convolutions, Hugging Face 1e-5
everywhere, mmsegmentation 1e-6 everywhere.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import Conv, Dense, DepthwiseConv, DropPath, LayerNorm, gelu
from segjax.nets.scan import Remat, scanned
from segjax.ops.attention import attention
from segjax.typing import Array

VARIANTS = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
"""Channels and numbers of blocks of the four stages."""
_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class EfficientAttention(nn.Module):
    """Self-attention of a map [B,H,W,C] whose keys and values come from the map reduced `ratio` times by a strided convolution."""

    heads: int
    ratio: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        reduced = x
        if self.ratio > 1:
            reduced = Conv(c, (self.ratio, self.ratio), self.ratio, padding=0, kernel_init=_FAN_OUT, dtype=self.dtype, name="sr")(x)
            reduced = LayerNorm(self.epsilon, self.dtype, name="norm")(reduced)
        query = Dense(c, dtype=self.dtype, name="q")(x).reshape(b, h * w, self.heads, -1)
        both = Dense(2 * c, dtype=self.dtype, name="kv")(reduced).reshape(b, -1, 2, self.heads, c // self.heads)
        y = attention(query, both[:, :, 0], both[:, :, 1])
        return Dense(c, dtype=self.dtype, name="proj")(y.reshape(x.shape))


class MixFFN(nn.Module):
    """Linear, depthwise 3x3 (which tells positions), exact GELU, linear."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.hidden, dtype=self.dtype, name="fc1")(x)
        near = nn.initializers.normal((2 / 9) ** 0.5)  # fan-out of one channel
        y = gelu(DepthwiseConv(3, kernel_init=near, dtype=self.dtype, name="dwconv")(y))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """x + drop(attention(norm(x))), then the same with the MixFFN. `rate` is the block's own chance of drop path."""

    heads: int
    ratio: int
    hidden: int
    block_epsilon: float
    patch_epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rate: Array, train: bool = False) -> tuple[Array, None]:
        norm = lambda name: LayerNorm(self.block_epsilon, self.dtype, name=name)
        attend = EfficientAttention(self.heads, self.ratio, self.patch_epsilon, self.dtype, name="attn")
        x = x + DropPath(name="drop1")(attend(norm("norm1")(x)), rate, train)
        x = x + DropPath(name="drop2")(MixFFN(self.hidden, self.dtype, name="mlp")(norm("norm2")(x)), rate, train)
        return x, None


class MiTSettings(nn.Module, kw_only=True):
    """What describes a MiT; the networks that hold one take the same arguments.

    variant: "b0" to "b5" gives `dims` and `depths` where they are None. drop_path: chance that the last block's branches are dropped,
    growing linearly from 0 over all blocks. block_epsilon, patch_epsilon: see the module's docstring.
    """

    variant: str = "b5"
    dims: Sequence[int] | None = None
    depths: Sequence[int] | None = None
    num_heads: Sequence[int] = (1, 2, 5, 8)
    mlp_ratios: Sequence[float] = (4, 4, 4, 4)
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    patch_sizes: Sequence[int] = (7, 3, 3, 3)
    strides: Sequence[int] = (4, 2, 2, 2)
    drop_path: float = 0.1
    block_epsilon: float = 1e-6
    patch_epsilon: float = 1e-5
    unroll: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def encoder(self, name: str = "backbone") -> "MixTransformer":
        """The MiT with these settings as a submodule called `name`."""
        own = [field for field in MiTSettings.__annotations__ if field not in ("parent", "name")]
        return MixTransformer(**{field: getattr(self, field) for field in own}, name=name)

    def described(self) -> dict[str, Any]:
        """`dims` and `depths`, spelled out where `variant` alone gave them."""
        dims, depths, *_ = zip(*self.stages(), strict=True)
        return {"dims": dims, "depths": depths}

    def stages(self) -> list[tuple[Any, ...]]:
        """(dim, depth, heads, mlp ratio, sr ratio, patch size, stride) of every stage. ConfigError: settings that disagree."""
        if self.variant not in VARIANTS:
            raise ConfigError(f"model.variant={self.variant!r}: expected one of {', '.join(VARIANTS)}")
        dims, depths = VARIANTS[self.variant]
        dims, depths = dims if self.dims is None else tuple(self.dims), depths if self.depths is None else tuple(self.depths)
        per_stage = (dims, depths, self.num_heads, self.mlp_ratios, self.sr_ratios, self.patch_sizes, self.strides)
        if len({len(values) for values in per_stage}) != 1:
            raise ConfigError(f"MiT with dims {dims}, depths {depths}, num_heads {self.num_heads}: expected as many of each, one a stage")
        if any(dim % heads for dim, heads in zip(dims, self.num_heads, strict=True)):
            raise ConfigError(f"MiT dims {dims} are no multiples of num_heads {tuple(self.num_heads)}: set num_heads=(...)")
        return list(zip(*per_stage, strict=True))


class MixTransformer(MiTSettings):
    """Backbone over normalised images [B,H,W,3]: the list of the stages' maps, strides 4, 8, 16, 32 (sizes rounded up).

    Params `patch_embedN`, `blockN` (stacked on a leading axis), `normN`. 81,443,008 parameters as B5.
    """

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        stages, outputs = self.stages(), []
        rates = np.linspace(0, self.drop_path, sum(depth for _, depth, *_ in stages), dtype=np.float32)
        for n, (dim, depth, heads, mlp_ratio, ratio, patch, stride) in enumerate(stages, 1):
            x = PatchEmbed(dim, patch, stride, self.patch_epsilon, self.dtype, name=f"patch_embed{n}")(x)
            if min(x.shape[1:3]) < ratio:
                raise ConfigError(f"image too small for a MiT: stage {n} has {x.shape[1]}x{x.shape[2]} pixels, reduced {ratio} times")
            blocks = scanned(Block, depth, in_axes=(0, nn.broadcast), unroll=self.unroll, remat=self.remat, static=(3,))
            settings = (heads, ratio, int(dim * mlp_ratio), self.block_epsilon, self.patch_epsilon, self.dtype)
            x, _ = blocks(*settings, name=f"block{n}")(x, jnp.asarray(rates[:depth]), train)
            rates = rates[depth:]
            x = LayerNorm(self.block_epsilon, self.dtype, name=f"norm{n}")(x)
            outputs.append(x)
        return outputs


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution and LayerNorm."""

    features: int
    patch: int
    stride: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape: dict[str, Any] = dict(kernel_size=(self.patch,) * 2, stride=self.stride, padding=self.patch // 2)
        conv = Conv(self.features, **shape, kernel_init=_FAN_OUT, dtype=self.dtype, name="proj")
        return LayerNorm(self.epsilon, self.dtype, name="norm")(conv(x))
