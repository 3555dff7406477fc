"""The conditional UNet of Stable Diffusion 1.x and 2.x, of any size that a diffusers `unet/config.json` can tell.

Scanned: within a down or up block the consecutive layers (residual block and transformer) whose input and skip have equal shapes, as
`layers_FIRST` with their parameters stacked (a layer without an equal neighbour is `layer_N`): in Stable Diffusion 1.5
20 layers become 14 bodies. A transformer has one block there and is not scanned. `remat` computes a layer's activations again for the
gradient.
Source: diffusers models/unets/unet_2d_condition.py. `attention_head_dim` of a published config is the number of heads.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Dense, GroupNorm
from segjax.nets.scan import Remat, rematerialised, scanned
from segjax.nets.unet_attention import Memory, Transformer, keys_values
from segjax.nets.unet_layers import Conv, Downsample, Resnet, Upsample, runs, timestep_embedding
from segjax.typing import Array


class Layer(nn.Module):
    """A residual block and, with heads > 0, a transformer. The skip of an up block is joined to the input first."""

    features: int
    heads: int
    transformers: int
    groups: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Array, skip: Array | None, memory: Memory | None, embedding: Array, context: Array | None
    ) -> tuple[Array, Array | None]:
        down = skip is None
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        x = Resnet(self.features, self.groups, self.epsilon, self.dtype, name="resnets")(x, embedding)
        if self.heads:
            transformer = Transformer(self.heads, self.transformers, self.groups, self.dtype, name="attentions")
            x = transformer(x, context, None if memory is None else memory["attentions"])
        return x, x if down else None


class _Block(nn.Module):
    """What down and up blocks share. heads 0: no attention. resample: changes the size at its end."""

    features: int
    layers: int
    heads: int = 0
    transformers: int = 1
    resample: bool = True
    groups: int = 32
    epsilon: float = 1e-5
    remat: Remat = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    def run(self, first: int, length: int, x, skips: Sequence[Array], embedding, context, memory) -> tuple[Array, list[Array]]:
        """One run of equal layers, scanned where there are several: the new x and, without skips, the output of every layer."""
        arguments = (self.features, self.heads, self.transformers, self.groups, self.epsilon, self.dtype)
        name = f"layer_{first}" if length == 1 else f"layers_{first}"
        memory = None if memory is None or not self.heads else memory[name]
        if length == 1:
            layer = rematerialised(Layer, self.remat)(*arguments, name=name)
            x, _ = layer(x, skips[0] if skips else None, memory, embedding, context)
            return x, [x]
        layer = scanned(Layer, length, in_axes=(0, 0, nn.broadcast, nn.broadcast), unroll=self.unroll, remat=self.remat)
        x, outputs = layer(*arguments, name=name)(x, jnp.stack(skips) if skips else None, memory, embedding, context)
        return x, [] if skips else list(outputs)


class DownBlock(_Block):
    """x -> (x, the output of every layer and of the downsampling, for the up blocks)."""

    @nn.compact
    def __call__(self, x: Array, embedding: Array, context: Array | None, memory: Memory | None) -> tuple[Array, list[Array]]:
        kept: list[Array] = []
        for first, length in runs([x.shape[-1], *[self.features] * (self.layers - 1)]):
            x, outputs = self.run(first, length, x, (), embedding, context, memory)
            kept += outputs
        if self.resample:
            x = Downsample(dtype=self.dtype, name="downsamplers_0")(x)
            kept.append(x)
        return x, kept


class UpBlock(_Block):
    """x and the skips, the next one to use last -> x, up-sampled to `size` where that is given."""

    @nn.compact
    def __call__(
        self, x: Array, skips: Sequence[Array], size: tuple[int, int] | None, embedding: Array, context: Array | None, memory: Memory | None
    ) -> Array:
        skips = list(reversed(skips))
        entering = [x.shape[-1], *[self.features] * (self.layers - 1)]
        for first, length in runs([(width, skip.shape[-1]) for width, skip in zip(entering, skips, strict=True)]):
            x, _ = self.run(first, length, x, skips[first : first + length], embedding, context, memory)
        return x if size is None else Upsample(self.dtype, name="upsamplers_0")(x, size)


class MidBlock(nn.Module):
    """Residual block, transformer, residual block."""

    heads: int
    transformers: int
    groups: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array, context: Array | None, memory: Memory | None) -> Array:
        resnet = lambda name: Resnet(x.shape[-1], self.groups, self.epsilon, self.dtype, name=name)
        x = resnet("resnets_0")(x, embedding)
        transformer = Transformer(self.heads, self.transformers, self.groups, self.dtype, name="attentions_0")
        x = transformer(x, context, None if memory is None else memory["attentions_0"])
        return resnet("resnets_1")(x, embedding)


class TimeEmbedding(nn.Module):
    """Sinusoids -> two linear layers with a SiLU between."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.silu(Dense(self.features, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.features, dtype=self.dtype, name="linear_2")(x)


class UNet(nn.Module):
    """Noisy latents, timesteps and text -> the network's prediction (noise, velocity or sample, as it was trained).

    widths, heads, layers, transformers, down_attention: one entry a down block, the highest resolution first; up blocks mirror the first
    four (`up_attention` is theirs, in the order in which they run) and have one layer more. sample_size: latent side that it was made for.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    layers: tuple[int, ...] = (2, 2, 2, 2)
    transformers: tuple[int, ...] = (1, 1, 1, 1)
    down_attention: tuple[bool, ...] = (True, True, True, False)
    up_attention: tuple[bool, ...] = (False, True, True, True)
    context_features: int = 768
    in_channels: int = 4
    out_channels: int = 4
    groups: int = 32
    epsilon: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    sample_size: int = 64
    remat: Remat = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Array, timesteps: Array, context: Array | None = None, memory: Memory | None = None) -> Array:
        """latents [B,h,w,C], timesteps [B] or one number, text `context` [B,M,E] or its ready `memory` (`keys_values`).

        Returns float32 [B,h,w,out_channels]. Any h and w: an up block takes the size of the skip that it meets next.
        """
        timesteps = jnp.broadcast_to(jnp.asarray(timesteps), latents.shape[:1])
        embedding = timestep_embedding(timesteps, self.widths[0], flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        embedding = TimeEmbedding(4 * self.widths[0], self.dtype, name="time_embedding")(embedding)
        of = lambda name: None if memory is None else memory.get(name)
        shared: dict[str, Any] = dict(groups=self.groups, epsilon=self.epsilon, dtype=self.dtype)
        scans: dict[str, Any] = dict(shared, remat=self.remat, unroll=self.unroll)
        x = Conv(self.widths[0], dtype=self.dtype, name="conv_in")(latents)
        skips, last = [x], len(self.widths) - 1
        for n, attends in enumerate(self.down_attention):
            heads = self.heads[n] if attends else 0
            block = DownBlock(self.widths[n], self.layers[n], heads, self.transformers[n], n < last, name=f"down_blocks_{n}", **scans)
            x, kept = block(x, embedding, context, of(f"down_blocks_{n}"))
            skips += kept
        x = MidBlock(self.heads[last], self.transformers[last], name="mid_block", **shared)(x, embedding, context, of("mid_block"))
        for n, attends in enumerate(self.up_attention):
            level, count = last - n, self.layers[last - n] + 1
            skips, used = skips[:-count], skips[-count:]
            size = (skips[-1].shape[1], skips[-1].shape[2]) if level else None
            heads = self.heads[level] if attends else 0
            block = UpBlock(self.widths[level], count, heads, self.transformers[level], name=f"up_blocks_{n}", **scans)
            x = block(x, used, size, embedding, context, of(f"up_blocks_{n}"))
        x = nn.silu(GroupNorm(self.groups, self.epsilon, self.dtype, name="conv_norm_out")(x))
        return Conv(self.out_channels, dtype=self.dtype, name="conv_out")(x).astype(jnp.float32)

    def keys_values(self, context: Array) -> Memory:
        """The text's keys and values for every layer, made once a prompt: `apply(variables, context, method="keys_values")`."""
        return keys_values(self.variables["params"], context, self.dtype)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The smallest arguments of `__call__`."""
        side = 2 ** (len(self.widths) - 1)
        shapes = (1, side, side, self.in_channels), (1,), (1, 77, self.context_features)
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
