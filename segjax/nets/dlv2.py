"""DeepLabV2 as DAFormer's comparisons run it ("dlv2red", mmsegmentation): a deep-stemmed ResNet under two atrous convolutions.

The authors keep dilations 6 and 12 alone, after an early return in AdaptSegNet's code that DACS and ProDA inherited. No BatchNorm and no
dropout in the head, whose convolutions start at N(0, 0.01) with biases 0.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.deeplab import normalise
from segjax.nets.layers import replicated
from segjax.nets.resnet import ResNet
from segjax.nets.scan import Remat
from segjax.ops.conv import atrous_sum
from segjax.typing import Array

REDUCED = (6, 12)


class DLV2Head(nn.Module):
    """Sum of 3x3 convolutions of the last stage, one a dilation; float32 logits. 700,454 parameters on 2,048 channels, 19 classes."""

    num_classes: int
    dilations: Sequence[int] = REDUCED
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[Array], train: bool = False) -> Array:
        del train
        x, rates = stages[-1].astype(self.dtype), tuple(self.dilations)
        kernel = self.param("kernel", nn.initializers.normal(0.01), (len(rates), 3, 3, x.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (len(rates), self.num_classes))
        return atrous_sum(x, replicated(kernel.astype(self.dtype)), bias, rates).astype(jnp.float32)


def resnet_of(backbone: str, width: int, remat: Remat, dtype: DTypeLike) -> ResNet:
    """ResNetV1c by name as the submodule `backbone`. ConfigError: a depth that is not built."""
    if backbone not in ("resnet50", "resnet101"):
        raise ConfigError(f"model.backbone={backbone!r}: expected resnet50 or resnet101")
    return ResNet(int(backbone.removeprefix("resnet")), width, style="v1c", remat=remat, dtype=dtype, name="backbone")


class DLV2(nn.Module):
    """DeepLabV2 over RGB images [B,H,W,3] in [0,1]. Returns {"logits": float32 [B,h,w,K] at stride 8, "features": layer4}.

    head=False gives the features alone. backbone: "resnet101" or "resnet50", ResNetV1c; `width` scales it (tests).
    normalization: as `nets.deeplab.normalise`. remat: the ResNet's.
    """

    num_classes: int
    backbone: str = "resnet101"
    width: int = 64
    dilations: Sequence[int] = REDUCED
    normalization: str = "imagenet"
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32
    align_corners: bool = False

    @nn.compact
    def __call__(self, image: Array, train: bool = False, head: bool = True) -> dict[str, Array]:
        backbone = resnet_of(self.backbone, self.width, self.remat, self.dtype)
        stages = backbone(normalise(image.astype(jnp.float32), self.normalization), train)
        if not head:
            return {"features": stages[-1]}
        return {"logits": DLV2Head(self.num_classes, self.dilations, self.dtype, name="decode_head")(stages, train), "features": stages[-1]}
