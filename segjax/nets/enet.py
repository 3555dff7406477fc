"""ENet (Paszke et al., arXiv 1606.02147): an encoder-decoder of 0.35 M parameters that unpools by the encoder's own indices.

Two public forms differ in small ways that change numbers; `layout` picks one. Source of "pytorch": davidtvs/PyTorch-ENet
models/enet.py (one PReLU slope a layer, an activation after each expansion, ReLU in the decoder, 351,660 parameters at 19 classes).
Source of "torch7": the authors' own release (a slope a channel, biased middle convolutions, plain expansions, BatchNorm eps 1e-3).
Stage 3 repeats stage 2 without its down-sampling, so the eight bottlenecks of both are one module scanned twice.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import BatchNorm, ChannelDropout, Conv, ConvTranspose, PReLU
from segjax.nets.scan import scanned
from segjax.ops.pooling import max_pool, max_pool_2x2_with_index, max_unpool_2x2
from segjax.typing import Array


class Layout(NamedTuple):
    """What a public ENet does where the releases differ."""

    slope_per_channel: bool  # PReLU: a slope a channel, or one for all
    middle_bias: bool  # 3x3 convolutions, the second of an asymmetric pair, the initial and the last one carry a bias
    tall_first: bool  # asymmetric pair: 5x1 (normalised, activated) then 1x5; else a bare 1x5 then 5x1
    activate_expansion: bool  # BatchNorm of the last 1x1 is followed by an activation before the sum
    wide_upsampling: bool  # up-sampling bottlenecks squeeze to inputs // 4 (else outputs // 4)
    upsampling_kernel: int  # transposed kernel inside an up-sampling bottleneck
    decoder_relu: bool  # ReLU (else PReLU) in the decoder
    decoder_dropout: float
    initial_pool: int  # window of the image pool in the initial block
    final_kernel: int  # transposed kernel that makes the logits
    bn_epsilon: float


LAYOUTS = {
    "pytorch": Layout(False, False, True, True, True, 2, True, 0.1, 3, 3, 1e-5),
    "torch7": Layout(True, True, False, False, False, 3, False, 0.0, 2, 2, 1e-3),
}


class _Unit(nn.Module):
    """Convolution, BatchNorm and (unless told otherwise) activation."""

    features: int
    layout: Layout
    kernel_size: tuple[int, int] = (1, 1)
    stride: int = 1
    dilation: int = 1
    bias: bool = False
    relu: bool = False
    activate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        padding = 0 if self.stride == 2 else None
        x = Conv(self.features, self.kernel_size, self.stride, self.dilation, padding, self.bias, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(self.layout.bn_epsilon, dtype=self.dtype, name="norm")(x, train)
        return _activation(self.relu, self.layout)(x) if self.activate else x


def _activation(relu: bool, layout: Layout):
    return nn.relu if relu else PReLU(layout.slope_per_channel, name="act")


class _Bottleneck(nn.Module):
    """Squeeze, work (3x3, dilated, or the asymmetric pair of 5x1 and 1x5), expand, drop channels, add."""

    features: int
    layout: Layout
    dilation: int = 1
    asymmetric: bool = False
    dropout: float = 0.1
    relu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inner = self.features // 4
        shared: dict[str, Any] = dict(layout=self.layout, relu=self.relu, dtype=self.dtype)
        y = _Unit(inner, name="ext_conv1", **shared)(x, train)
        if self.asymmetric:
            if self.layout.tall_first:
                y = _Unit(inner, kernel_size=(5, 1), name="ext_conv2a", **shared)(y, train)
            else:
                y = Conv(inner, (1, 5), use_bias=False, dtype=self.dtype, name="ext_conv2a")(y)
            second = (1, 5) if self.layout.tall_first else (5, 1)
            y = _Unit(inner, kernel_size=second, bias=self.layout.middle_bias, name="ext_conv2", **shared)(y, train)
        else:
            y = _Unit(inner, kernel_size=(3, 3), dilation=self.dilation, bias=self.layout.middle_bias, name="ext_conv2", **shared)(y, train)
        y = _Unit(self.features, activate=self.layout.activate_expansion, name="ext_conv3", **shared)(y, train)
        y = ChannelDropout(self.dropout)(y, train)
        return _activation(self.relu, self.layout)(x + y)


class _Downsampling(nn.Module):
    """Pool 2x2 with indices beside a strided bottleneck; the pooled channels are padded with zeros."""

    features: int
    layout: Layout
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
        main, index = max_pool_2x2_with_index(x)
        main = jnp.pad(main, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        inner = x.shape[-1] // 4 if self.layout.wide_upsampling else self.features // 4
        shared: dict[str, Any] = dict(layout=self.layout, dtype=self.dtype)
        y = _Unit(inner, kernel_size=(2, 2), stride=2, name="ext_conv1", **shared)(x, train)
        y = _Unit(inner, kernel_size=(3, 3), bias=self.layout.middle_bias, name="ext_conv2", **shared)(y, train)
        y = _Unit(self.features, activate=self.layout.activate_expansion, name="ext_conv3", **shared)(y, train)
        y = ChannelDropout(self.dropout)(y, train)
        return PReLU(self.layout.slope_per_channel, name="act")(main + y), index


class _Upsampling(nn.Module):
    """Unpool a 1x1 projection by the encoder's indices beside a bottleneck with a transposed convolution."""

    features: int
    layout: Layout
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, index: Array, size: tuple[int, int], train: bool) -> Array:
        layout, relu = self.layout, self.layout.decoder_relu
        main = _Unit(self.features, layout, activate=False, dtype=self.dtype, name="main_conv1")(x, train)
        main = max_unpool_2x2(main, index[..., : self.features], size)
        inner = (x.shape[-1] if layout.wide_upsampling else self.features) // 4
        y = _Unit(inner, layout, relu=relu, dtype=self.dtype, name="ext_conv1")(x, train)
        y = ConvTranspose(inner, layout.upsampling_kernel, layout.middle_bias, self.dtype, name="ext_tconv1")(y)
        y = jnp.pad(y, ((0, 0), (0, size[0] - y.shape[1]), (0, size[1] - y.shape[2]), (0, 0)))
        y = BatchNorm(layout.bn_epsilon, dtype=self.dtype, name="ext_tconv1_bnorm")(y, train)
        y = nn.relu(y) if relu else PReLU(layout.slope_per_channel, name="ext_tconv1_act")(y)
        y = _Unit(self.features, layout, activate=False, dtype=self.dtype, name="ext_conv2")(y, train)
        y = ChannelDropout(layout.decoder_dropout)(y, train)
        return _activation(relu, layout)(main + y)


class _Section(nn.Module):
    """The bottlenecks that stages 2 and 3 have in common, by their dilations; 0 is the asymmetric pair."""

    layout: Layout
    dilations: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        for n, dilation in enumerate(self.dilations):
            block = _Bottleneck(128, self.layout, max(dilation, 1), asymmetric=dilation == 0, dtype=self.dtype, name=f"block{n}")
            x = block(x, train)
        return x, None


class _Stage1Block(nn.Module):
    layout: Layout
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        return _Bottleneck(64, self.layout, dropout=0.01, dtype=self.dtype, name="block")(x, train), None


class ENet(nn.Module):
    """ENet over images [B,H,W,3] in [0,1] (RGB, no mean subtracted). Returns {"logits": float32 [B,H,W,num_classes]} at full size.

    Any H, W: odd sizes are floored by the pools and restored by the unpools, as in torch.
    Also "features": the 16 channels at half size that the last transposed convolution reads. `embedding` > 0 widens that convolution to so
    many channels, which are the features then, at full size, and lets a 1x1 convolution without bias classify them: zgerem/UDA's
    model.cont with 64 (359,356 parameters at 19 classes). dilations: of the bottlenecks of stages 2 and 3, 0 for an asymmetric pair.
    """

    num_classes: int
    layout: str = "pytorch"
    dtype: DTypeLike = jnp.float32
    align_corners: bool = False
    embedding: int = 0
    dilations: Sequence[int] = (1, 2, 0, 4, 1, 8, 0, 16)

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"model.layout={self.layout!r}: expected {' or '.join(LAYOUTS)}")
        layout, dtype = LAYOUTS[self.layout], self.dtype
        x = image.astype(dtype)
        full = x.shape[1], x.shape[2]
        convolved = Conv(13, (3, 3), 2, padding=1, use_bias=layout.middle_bias, dtype=dtype, name="initial_conv")(x)
        window = layout.initial_pool
        pooled = max_pool(x, window=window, padding=(window - 1) // 2, ceil_mode=window == 2)  # both sizes are ceil(n / 2)
        x = BatchNorm(layout.bn_epsilon, dtype=dtype, name="initial_norm")(jnp.concatenate([convolved, pooled], -1), train)
        x = PReLU(layout.slope_per_channel, name="initial_act")(x)
        half = x.shape[1], x.shape[2]
        x, index1 = _Downsampling(64, layout, 0.01, dtype, name="downsample1_0")(x, train)
        quarter = x.shape[1], x.shape[2]
        x, _ = scanned(_Stage1Block, 4)(layout, dtype, name="stage1")(x, train)
        x, index2 = _Downsampling(128, layout, 0.1, dtype, name="downsample2_0")(x, train)
        x, _ = scanned(_Section, 2)(layout, self.dilations, dtype, name="stage2_3")(x, train)
        decoder: dict[str, Any] = dict(dropout=layout.decoder_dropout, relu=layout.decoder_relu, dtype=dtype)
        x = _Upsampling(64, layout, dtype, name="upsample4_0")(x, index2, quarter, train)
        x = _Bottleneck(64, layout, name="regular4_1", **decoder)(x, train)
        x = _Bottleneck(64, layout, name="regular4_2", **decoder)(x, train)
        x = _Upsampling(16, layout, dtype, name="upsample5_0")(x, index1, half, train)
        x = _Bottleneck(16, layout, name="regular5_1", **decoder)(x, train)
        outputs = self.embedding or self.num_classes
        last = ConvTranspose(outputs, layout.final_kernel, layout.middle_bias, dtype, name="transposed_conv")(x, full)
        if not self.embedding:
            return {"logits": last.astype(jnp.float32), "features": x}
        logits = Conv(self.num_classes, (1, 1), use_bias=False, dtype=dtype, name="last")(last)
        return {"logits": logits.astype(jnp.float32), "features": last}
