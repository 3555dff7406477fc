"""ResNet-50/101 with bottlenecks, dilated for segmentation; the repeated blocks of each stage are scanned.

`style="caffe"` is the DeepLab family's (AdaptSegNet model/deeplab_multi.py and its heirs): the stride sits on the first 1x1, pooling rounds
up (`ceil_mode`), every block of a dilated stage is dilated. `style="torchvision"` puts the stride on the 3x3, and the first
block of a stage whose stride became a dilation keeps the previous dilation (`replace_stride_with_dilation`). `style="v1c"` is
mmsegmentation's ResNetV1c: torchvision's with three 3x3 convolutions for a stem (its `contract_dilation` is the same rule).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import BatchNorm, Conv
from segjax.nets.scan import Remat, scanned
from segjax.ops.pooling import max_pool
from segjax.typing import Array

STYLES = ("caffe", "torchvision", "v1c")
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with BatchNorm, added to the input or to its projection."""

    width: int
    stride: int = 1
    dilation: int = 1
    project: bool = False
    stride_in_1x1: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        conv = lambda features, name, **k: Conv(features, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name=name, **k)
        norm = lambda name: BatchNorm(dtype=self.dtype, name=name)
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = nn.relu(norm("bn1")(conv(self.width, "conv1", kernel_size=(1, 1), stride=first)(x), train))
        y = nn.relu(norm("bn2")(conv(self.width, "conv2", stride=second, dilation=self.dilation)(y), train))
        y = norm("bn3")(conv(4 * self.width, "conv3", kernel_size=(1, 1))(y), train)
        if self.project:
            x = norm("downsample_bn")(conv(4 * self.width, "downsample_conv", kernel_size=(1, 1), stride=self.stride)(x), train)
        return nn.relu(x + y), None


class ResNet(nn.Module):
    """Backbone over normalised images [B,H,W,3]: the list of the outputs of layer1..layer4 (strides 4, 8, 8, 8 by default).

    Params `layerN_0` (first block) and `layerN_rest` (the others, stacked on a leading axis). remat: what of those others is kept
    for the gradient (`nets.scan.rematerialised`), all else is computed again.
    """

    depth: int | Sequence[int] = 101
    width: int = 64
    strides: Sequence[int] = (1, 2, 1, 1)
    dilations: Sequence[int] = (1, 1, 2, 4)
    style: str = "caffe"
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    unroll: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        depths = DEPTHS[self.depth] if isinstance(self.depth, int) else tuple(self.depth)
        if self.style not in STYLES:
            raise ConfigError(f"ResNet style={self.style!r}: expected one of {', '.join(STYLES)}")
        caffe = self.style == "caffe"
        shared: dict[str, Any] = dict(kernel_init=self.kernel_init, dtype=self.dtype, stride_in_1x1=caffe)
        x = max_pool(self._stem(x.astype(self.dtype), train), ceil_mode=caffe)
        outputs, previous = [], 1
        for n, (blocks, stride, dilation) in enumerate(zip(depths, self.strides, self.dilations, strict=True)):
            width = self.width * 2**n
            first = dilation if caffe else (previous if stride == 1 else 1)
            x, _ = Bottleneck(width, stride, first, project=True, name=f"layer{n + 1}_0", **shared)(x, train)
            if blocks > 1:
                x, _ = scanned(Bottleneck, blocks - 1, unroll=self.unroll, remat=self.remat, static=(2,))(
                    width, 1, dilation, name=f"layer{n + 1}_rest", **shared
                )(x, train)
            outputs.append(x)
            previous = dilation
        return outputs

    def _stem(self, x: Array, train: bool) -> Array:
        """Stride 2: one 7x7 convolution, or three 3x3 whose names count convolution, BatchNorm and ReLU."""
        conv = lambda features, name, **k: Conv(features, use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype, name=name, **k)
        norm = lambda name: BatchNorm(dtype=self.dtype, name=name)
        if self.style != "v1c":
            return nn.relu(norm("bn1")(conv(self.width, "conv1", kernel_size=(7, 7), stride=2)(x), train))
        for n, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))):
            x = nn.relu(norm(f"stem_{3 * n + 1}")(conv(features, f"stem_{3 * n}", stride=stride)(x), train))
        return x
