"""What the UNet and the autoencoder of Stable Diffusion are made of: residual blocks, changes of size, and scans over equal layers.

A block's consecutive layers of equal shape are one scanned layer; submodules and parameters keep diffusers' names within it.
Source: diffusers models/resnet.py, downsampling.py, upsampling.py.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Dense, GroupNorm, parameter, replicated
from segjax.ops.conv_products import steady_conv2d
from segjax.ops.resize import nearest
from segjax.typing import Array


class Conv(nn.Module):
    """`nets.layers.Conv`, over `steady_conv2d`: on a CPU an image's bits must not follow the number of devices or threads."""

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default
        kernel = parameter(self, "kernel", init, (*self.kernel_size, x.shape[-1], self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        padding = None if self.padding is None else ((self.padding, self.padding), (self.padding, self.padding))
        y = steady_conv2d(x.astype(self.dtype), replicated(kernel.astype(self.dtype)), stride=self.stride, padding=padding)
        return y + bias.astype(self.dtype)


class Resnet(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution, twice, added to the input or to its 1x1 projection.

    x [B,H,W,C] -> [B,H,W,features]. embedding [B,E]: the time's, added per channel between the two convolutions; None in an autoencoder.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        norm = lambda name: GroupNorm(self.groups, self.epsilon, self.dtype, name=name)
        y = Conv(self.features, dtype=self.dtype, name="conv1")(nn.silu(norm("norm1")(x)))
        if embedding is not None:
            y = y + Dense(self.features, dtype=self.dtype, name="time_emb_proj")(nn.silu(embedding))[:, None, None]
        y = Conv(self.features, dtype=self.dtype, name="conv2")(nn.silu(norm("norm2")(y)))
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """3x3 convolution of stride 2. padding 1: on every side (UNet); 0: one row below and one column to the right (autoencoder)."""

    padding: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.padding == 0:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(x.shape[-1], stride=2, padding=self.padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour resize to `size`, then a 3x3 convolution."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int]) -> Array:
        return Conv(x.shape[-1], dtype=self.dtype, name="conv")(nearest(x, size))


def timestep_embedding(timesteps: Array, features: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0) -> Array:
    """Sinusoids of timesteps [B] at frequencies 10000^(-i / (features / 2 - freq_shift)): float32 [B, features].

    Sines first, or cosines with `flip_sin_to_cos`. Source: diffusers models/embeddings.py, get_timestep_embedding; an even size alone.
    """
    half = features // 2
    rates = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * rates
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(parts, axis=-1)


def runs(shapes: Iterable[Any]) -> list[tuple[int, int]]:
    """(first, length) of every run of equal neighbours: [a, b, b] -> [(0, 1), (1, 2)]."""
    found, first = [], 0
    for _, group in itertools.groupby(shapes):
        length = len(list(group))
        found.append((first, length))
        first += length
    return found
