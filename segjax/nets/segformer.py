"""SegFormer: a MiT under the all-MLP head (NVlabs/SegFormer segformer_head.py; also as Hugging Face and mmsegmentation write it).

The stages lie side by side in the order 1..4 here; NVlabs and Hugging Face concatenate 4..1, which their weight tables turn round. The
1x1 fusion is applied to each stage's map before it is up-sampled: a 1x1 convolution and a bilinear resize commute, so the result is the
same, and the four full-size maps and most of the products are saved.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.deeplab import normalise
from segjax.nets.layers import BatchNorm, ChannelDropout, Conv, Dense, Dropout, replicated
from segjax.nets.mit import MiTSettings
from segjax.ops.conv import conv2d, product
from segjax.ops.resize import bilinear
from segjax.typing import Array

DROPOUTS = {"channel": ChannelDropout, "element": Dropout}


def dropout(kind: str, rate: float) -> nn.Module:
    """The dropout before a classifier: "channel" (NVlabs, DAFormer) or "element" (Hugging Face). ConfigError: neither."""
    if kind not in DROPOUTS:
        raise ConfigError(f"model.dropout_kind={kind!r}: expected {' or '.join(DROPOUTS)}")
    return DROPOUTS[kind](rate)


def classifier(num_classes: int, name: str) -> Conv:
    """The last 1x1 convolution, always float32."""
    return Conv(num_classes, (1, 1), kernel_init=nn.initializers.normal(0.01), name=name)


class StagesConv(nn.Module):
    """Convolution of maps that lie side by side at the size of the first: kernel [k,k,sum of channels,features], no bias."""

    features: int
    kernel_size: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> Array:
        channels = sum(x.shape[-1] for x in maps)
        init = nn.initializers.he_normal()
        kernel = self.param("kernel", init, (self.kernel_size, self.kernel_size, channels, self.features))
        kernel, size = replicated(kernel.astype(self.dtype)), (maps[0].shape[1], maps[0].shape[2])
        if self.kernel_size > 1:  # its zero border lies at full size
            return conv2d(jnp.concatenate([bilinear(x, size) for x in maps], -1), kernel)
        total, first = None, 0
        for x in maps:
            part = bilinear(product(x, kernel[0, 0, first : first + x.shape[-1]]), size)
            total, first = part if total is None else total + part, first + x.shape[-1]
        return total  # pyright: ignore[reportReturnType]  # there is a stage


class FusedStages(nn.Module):
    """`StagesConv`, BatchNorm, ReLU: the public code's ConvModule over the concatenated stages."""

    features: int
    kernel_size: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> Array:
        x = StagesConv(self.features, self.kernel_size, self.dtype, name="conv")(maps)
        return nn.relu(BatchNorm(dtype=self.dtype, name="bn")(x, train))


class ConvNorm(nn.Module):
    """1x1 (or larger, dilated) convolution without bias, BatchNorm, ReLU."""

    features: int
    kernel_size: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        size = (self.kernel_size, self.kernel_size)
        init = nn.initializers.he_normal()
        conv = Conv(self.features, size, dilation=self.dilation, use_bias=False, kernel_init=init, dtype=self.dtype, name="conv")
        return nn.relu(BatchNorm(dtype=self.dtype, name="bn")(conv(x), train))


class SegFormerHead(nn.Module):
    """Embeds every stage, fuses, classifies; float32 logits.

    embed: "linear", or "conv" for mmsegmentation's 1x1 convolution, BatchNorm and ReLU.
    """

    num_classes: int
    channels: int = 768
    kernel_size: int = 1
    embed: str = "linear"
    dropout: float = 0.1
    dropout_kind: str = "channel"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[Array], train: bool = False) -> Array:
        if self.embed not in ("linear", "conv"):
            raise ConfigError(f"model.embed={self.embed!r}: expected linear or conv")
        maps = []
        for n, stage in enumerate(stages, 1):
            if self.embed == "linear":
                maps.append(Dense(self.channels, dtype=self.dtype, name=f"linear_c{n}")(stage))
            else:
                maps.append(ConvNorm(self.channels, dtype=self.dtype, name=f"linear_c{n}")(stage, train))
        x = FusedStages(self.channels, self.kernel_size, self.dtype, name="linear_fuse")(maps, train)
        x = dropout(self.dropout_kind, self.dropout)(x, train)
        return classifier(self.num_classes, "linear_pred")(x)


class SegFormer(MiTSettings):
    """SegFormer over RGB images [B,H,W,3] in [0,1]. Returns {"logits": float32 [B,h,w,K] at stride 4, "features": the last stage}.

    channels: 256 for B0 and B1, 768 for B2 to B5 in the public models. normalization: as `nets.deeplab.normalise`.
    """

    num_classes: int
    channels: int = 768
    kernel_size: int = 1
    embed: str = "linear"
    dropout: float = 0.1
    dropout_kind: str = "channel"
    normalization: str = "imagenet"
    align_corners: bool = False

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        stages = self.encoder()(normalise(image.astype(jnp.float32), self.normalization), train)
        head = (self.num_classes, self.channels, self.kernel_size, self.embed, self.dropout, self.dropout_kind, self.dtype)
        return {"logits": SegFormerHead(*head, name="decode_head")(stages, train), "features": stages[-1]}
