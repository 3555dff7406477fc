"""DeepLabV2's ResNet under ProDA's head, the network of ProDA and DiGA: atrous branches side by side, squeezed and excited, one feature.

Source: microsoft/ProDA models/deeplabv2.py (Classifier_Module2), fy-vision/DiGA model/seg_model_noaux.py. 65,063,568 parameters on
ResNet-101 with 19 classes, 22,563,408 of them the head. Every convolution starts from N(0, 0.01), for the original's ResNet draws the
head's again; the two dense layers from torch's default. All biases start at zero (there: uniform within fan_in ** -0.5).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.deeplab import DILATIONS, normalise
from segjax.nets.layers import BatchNorm, ChannelDropout, Conv, Dense, GroupNorm
from segjax.nets.resnet import ResNet
from segjax.nets.scan import Remat
from segjax.typing import Array

GROUPS = 32
REDUCTION = 16
_CONV_INIT = nn.initializers.normal(0.01)
_DENSE_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class SqueezeExcite(nn.Module):
    """x [B,H,W,C] times a factor in (0, 1) for each image and channel, from its mean over space through C // 16 numbers."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        dense = lambda features, name: Dense(features, kernel_init=_DENSE_INIT, dtype=self.dtype, name=name)
        mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
        factor = nn.sigmoid(dense(channels, "excite")(nn.relu(dense(channels // REDUCTION, "squeeze")(mean))))
        return x * factor.astype(x.dtype)


class ProDAHead(nn.Module):
    """[B,h,w,C] -> (logits float32 [B,h,w,K], feature [B,h,w,channels]). The feature has lost channels to dropout in training, as there."""

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        if self.channels % GROUPS:
            raise ConfigError(f"model.channels={self.channels}: expected a multiple of {GROUPS}, the groups of GroupNorm")
        branches = []
        for n, dilation in enumerate((1, *DILATIONS)):
            branches.append(nn.relu(self._conv_norm(x, f"branch{n}", 3 if n else 1, dilation)))
        x = SqueezeExcite(self.dtype, name="squeeze_excite")(jnp.concatenate(branches, -1))
        feature = ChannelDropout(self.dropout)(self._conv_norm(x, "bottleneck", 3), train)
        logits = Conv(self.num_classes, (1, 1), use_bias=False, kernel_init=_CONV_INIT, name="classifier")(feature)
        return logits, feature

    def _conv_norm(self, x: Array, name: str, size: int, dilation: int = 1) -> Array:
        conv = Conv(self.channels, (size, size), dilation=dilation, kernel_init=_CONV_INIT, dtype=self.dtype, name=f"{name}_conv")
        return GroupNorm(GROUPS, dtype=self.dtype, name=f"{name}_norm")(conv(x))


class ProDA(nn.Module):
    """ProDA's network over RGB images [B,H,W,3] in [0,1]; stride 8 with DeepLabV2's sizes (512x896 -> 65x113).

    Returns {"logits": float32 [B,h,w,K], "features": [B,h,w,channels]}, the feature that the classifier reads.
    backbone: "resnet101" or "resnet50". width: of its first stage; channels: of a branch and of the feature, a multiple of 32; both are
        smaller in tests and on a CPU. style: the ResNet's ("torchvision" for weights from there).
    normalization: as `nets.deeplab.normalise`; "caffe_128" is DiGA's, "none" ProDA's.
    remat: the ResNet's.
    extra_norm: a BatchNorm between backbone and head (`bn_pretrain`, which ProDA has over a SimCLRv2 backbone).
    """

    num_classes: int
    backbone: str = "resnet101"
    width: int = 64
    channels: int = 256
    normalization: str = "caffe_128"
    style: str = "caffe"
    extra_norm: bool = False
    dropout: float = 0.1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32
    align_corners: bool = True

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        if self.backbone not in ("resnet50", "resnet101"):
            raise ConfigError(f"model.backbone={self.backbone!r}: expected resnet50 or resnet101")
        depth = int(self.backbone[len("resnet") :])
        x = normalise(image.astype(jnp.float32), self.normalization)
        settings = {"style": self.style, "kernel_init": _CONV_INIT, "remat": self.remat, "dtype": self.dtype}
        x = ResNet(depth, self.width, name="backbone", **settings)(x, train)[-1]
        if self.extra_norm:
            x = BatchNorm(dtype=self.dtype, name="bn_pretrain")(x, train)
        logits, feature = ProDAHead(self.num_classes, self.channels, self.dropout, self.dtype, name="head")(x, train)
        return {"logits": logits, "features": feature}
