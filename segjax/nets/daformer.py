"""DAFormer: a MiT under a context-aware fusion head (lhoyer/DAFormer daformer_head.py); the network of DAFormer, HRDA's scales and MIC.

fusion="sepaspp" is DAFormer's own: the stages side by side under an ASPP of dilations 1, 6, 12, 18, whose 3x3 are depthwise-separable;
no image pooling. "aspp" has dense 3x3, "conv" one convolution (`kernel_size` 1: "SegFormer with 256 channels").
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.deeplab import normalise
from segjax.nets.layers import BatchNorm, Dense, DepthwiseConv
from segjax.nets.mit import MiTSettings
from segjax.nets.segformer import ConvNorm, FusedStages, classifier, dropout
from segjax.ops.resize import bilinear
from segjax.typing import Array

DILATIONS = (1, 6, 12, 18)


class SeparableConvNorm(nn.Module):
    """Depthwise 3x3, BatchNorm, ReLU, pointwise 1x1, BatchNorm, ReLU."""

    features: int
    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        depthwise = DepthwiseConv(3, dilation=self.dilation, use_bias=False, dtype=self.dtype, name="depthwise_conv")
        x = nn.relu(BatchNorm(dtype=self.dtype, name="depthwise_bn")(depthwise(x), train))
        return ConvNorm(self.features, dtype=self.dtype, name="pointwise")(x, train)


class ASPP(nn.Module):
    """Branches of several dilations (1x1 where it is 1), side by side under a 3x3 ConvNorm."""

    features: int
    separable: bool = True
    dilations: Sequence[int] = DILATIONS
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        branches = []
        for n, dilation in enumerate(self.dilations):
            name = f"aspp_modules_{n}"
            if dilation == 1:
                branch = ConvNorm(self.features, dtype=self.dtype, name=name)
            elif self.separable:
                branch = SeparableConvNorm(self.features, dilation, self.dtype, name=name)
            else:
                branch = ConvNorm(self.features, 3, dilation, self.dtype, name=name)
            branches.append(branch(x, train))
        return ConvNorm(self.features, 3, dtype=self.dtype, name="bottleneck")(jnp.concatenate(branches, -1), train)


class DAFormerHead(nn.Module):
    """Linear embedding of every stage, fusion at the first one's size, dropout of whole channels, 1x1 classifier; float32 logits.

    3,712,275 parameters with 256 channels, 19 classes and MiT-B5 (530,707 with fusion="conv").
    """

    num_classes: int
    channels: int = 256
    fusion: str = "sepaspp"
    kernel_size: int = 1
    dilations: Sequence[int] = DILATIONS
    dropout: float = 0.1
    dropout_kind: str = "channel"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[Array], train: bool = False) -> Array:
        maps = [Dense(self.channels, dtype=self.dtype, name=f"embed_layers_{n}")(stage) for n, stage in enumerate(stages)]
        if self.fusion == "conv":
            x = FusedStages(self.channels, self.kernel_size, self.dtype, name="fuse_layer")(maps, train)
        elif self.fusion in ("sepaspp", "aspp"):
            size = maps[0].shape[1], maps[0].shape[2]
            x = jnp.concatenate([bilinear(x, size) for x in maps], -1)
            x = ASPP(self.channels, self.fusion == "sepaspp", self.dilations, self.dtype, name="fuse_layer")(x, train)
        else:
            raise ConfigError(f"model.fusion={self.fusion!r}: expected sepaspp, aspp or conv")
        x = dropout(self.dropout_kind, self.dropout)(x, train)
        return classifier(self.num_classes, "conv_seg")(x)


class DAFormer(MiTSettings):
    """DAFormer over RGB images [B,H,W,3] in [0,1]. Returns {"logits": float32 [B,h,w,K] at stride 4, "features": the last stage}.

    head=False gives the features alone. normalization: as `nets.deeplab.normalise`. 85,155,283 parameters on MiT-B5 with 19 classes.
    """

    num_classes: int
    channels: int = 256
    fusion: str = "sepaspp"
    kernel_size: int = 1
    dilations: Sequence[int] = DILATIONS
    dropout: float = 0.1
    dropout_kind: str = "channel"
    normalization: str = "imagenet"
    align_corners: bool = False

    @nn.compact
    def __call__(self, image: Array, train: bool = False, head: bool = True) -> dict[str, Array]:
        stages = self.encoder()(normalise(image.astype(jnp.float32), self.normalization), train)
        if not head:
            return {"features": stages[-1]}
        fields = (
            self.num_classes,
            self.channels,
            self.fusion,
            self.kernel_size,
            self.dilations,
            self.dropout,
            self.dropout_kind,
            self.dtype,
        )
        return {"logits": DAFormerHead(*fields, name="decode_head")(stages, train), "features": stages[-1]}
