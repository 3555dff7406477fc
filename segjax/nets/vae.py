"""The autoencoder of Stable Diffusion (diffusers' AutoencoderKL): images to latents of an eighth of the side, and back.

Scanned: a block's consecutive residual blocks of equal shape, as `resnets_FIRST` with their parameters stacked
(one without an equal neighbour is `resnet_N`).
Source: diffusers models/autoencoders/{autoencoder_kl,vae}.py.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import GroupNorm
from segjax.nets.scan import Remat, rematerialised, scanned
from segjax.nets.unet_attention import Attention
from segjax.nets.unet_layers import Conv, Downsample, Resnet, Upsample, runs
from segjax.typing import Array

EPSILON = 1e-6


class _Layer(nn.Module):
    """A residual block as the body of a scan."""

    features: int
    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        return Resnet(self.features, self.groups, EPSILON, self.dtype, name="resnet")(x), None


class _Stack(nn.Module):
    """The residual blocks of one resolution, then a change of size: "down", "up" or "" for none."""

    features: int
    layers: int
    resample: str
    groups: int
    remat: Remat
    unroll: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for first, length in runs([x.shape[-1], *[self.features] * (self.layers - 1)]):
            if length == 1:
                resnet = rematerialised(Resnet, self.remat)
                x = resnet(self.features, self.groups, EPSILON, self.dtype, name=f"resnet_{first}")(x)
            else:
                layer = scanned(_Layer, length, unroll=self.unroll, remat=self.remat)
                x, _ = layer(self.features, self.groups, self.dtype, name=f"resnets_{first}")(x)
        if self.resample == "down":
            return Downsample(padding=0, dtype=self.dtype, name="downsamplers_0")(x)
        if self.resample == "up":
            return Upsample(self.dtype, name="upsamplers_0")(x, (2 * x.shape[1], 2 * x.shape[2]))
        return x


class _Mid(nn.Module):
    """Residual block, attention of one head over all pixels, residual block."""

    groups: int
    attends: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        resnet = lambda name: Resnet(x.shape[-1], self.groups, EPSILON, self.dtype, name=name)
        x = resnet("resnets_0")(x)
        if self.attends:
            x = x + _PixelAttention(self.groups, self.dtype, name="attentions_0")(x)
        return resnet("resnets_1")(x)


class _PixelAttention(nn.Module):
    """GroupNorm and self-attention of one head over the pixels of [B,H,W,C]; every layer has a bias."""

    groups: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        tokens = GroupNorm(self.groups, EPSILON, self.dtype, name="group_norm")(x).reshape(x.shape[0], -1, x.shape[-1])
        return Attention(1, True, self.dtype, name="attention")(tokens).reshape(x.shape)


class Encoder(nn.Module):
    """Images [B,H,W,3] in [-1,1] -> [B,H/2^n,W/2^n,features]."""

    widths: tuple[int, ...]
    layers: int
    features: int
    groups: int
    attends: bool
    remat: Remat
    unroll: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[0], dtype=self.dtype, name="conv_in")(x)
        for n, width in enumerate(self.widths):
            resample = "down" if n < len(self.widths) - 1 else ""
            x = _Stack(width, self.layers, resample, self.groups, self.remat, self.unroll, self.dtype, name=f"down_blocks_{n}")(x)
        x = _Mid(self.groups, self.attends, self.dtype, name="mid_block")(x)
        x = nn.silu(GroupNorm(self.groups, EPSILON, self.dtype, name="conv_norm_out")(x))
        return Conv(self.features, dtype=self.dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents [B,h,w,C] -> images [B,2^n h,2^n w,features] in [-1,1], not clipped."""

    widths: tuple[int, ...]
    layers: int
    features: int
    groups: int
    attends: bool
    remat: Remat
    unroll: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.widths[-1], dtype=self.dtype, name="conv_in")(x)
        x = _Mid(self.groups, self.attends, self.dtype, name="mid_block")(x)
        for n, width in enumerate(reversed(self.widths)):
            resample = "up" if n < len(self.widths) - 1 else ""
            x = _Stack(width, self.layers + 1, resample, self.groups, self.remat, self.unroll, self.dtype, name=f"up_blocks_{n}")(x)
        x = nn.silu(GroupNorm(self.groups, EPSILON, self.dtype, name="conv_norm_out")(x))
        return Conv(self.features, dtype=self.dtype, name="conv_out")(x)


class VAE(nn.Module):
    """`encode` and `decode`; called, it returns an image as it comes back from the mean of its latents.

    Images are float [B,H,W,3] in [0,1], H and W multiples of 2^(blocks - 1). Latents are the autoencoder's own: the UNet's are these
    times `scaling_factor`. widths: channels of the blocks, the highest resolution first. sample_size: image side that it was made for.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    groups: int = 32
    scaling_factor: float = 0.18215
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    sample_size: int = 512
    remat: Remat = "none"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self):
        shared: dict[str, Any] = dict(
            groups=self.groups, attends=self.mid_attention, remat=self.remat, unroll=self.unroll, dtype=self.dtype
        )
        self.encoder = Encoder(self.widths, self.layers, 2 * self.latent_channels, **shared)
        self.decoder = Decoder(self.widths, self.layers, self.out_channels, **shared)
        if self.quant_conv:
            self.quant = Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
        if self.post_quant_conv:
            self.post_quant = Conv(self.latent_channels, (1, 1), dtype=self.dtype)

    def __call__(self, image: Array) -> Array:
        return self.decode(self.encode(image)[0])

    def encode(self, image: Array) -> tuple[Array, Array]:
        """Mean and log-variance float32 [B,h,w,C] of the latents; the log-variance is held within -30..20."""
        moments = self.encoder(2 * image - 1)
        moments = self.quant(moments) if self.quant_conv else moments
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Array) -> Array:
        """Images float32 in [0,1], up to what the decoder overshoots: clip before rounding."""
        latents = self.post_quant(latents) if self.post_quant_conv else latents
        return self.decoder(latents).astype(jnp.float32) / 2 + 0.5

    @property
    def stride(self) -> int:
        """Pixels a latent, along one side."""
        return 2 ** (len(self.widths) - 1)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The smallest image."""
        return (jax.ShapeDtypeStruct((1, self.stride, self.stride, self.in_channels), jnp.float32),)
