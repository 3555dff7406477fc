"""HRNetV2: up to four branches of strides 4 to 32 kept side by side and fused after every few blocks (Sun et al., arXiv 1904.04514).

Source: HRNet/HRNet-Semantic-Segmentation lib/models/seg_hrnet_ocr.py (W48: widths 48, 96, 192, 384; modules 1, 4, 3 of four blocks).
The modules of a stage are alike and are scanned, the blocks of a branch within them too: a parameter of a branch is stacked
[modules, blocks, ...], one of a fusion [modules, ...]. Fusions up-sample with aligned corners, as that code does.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import BatchNorm, Conv
from segjax.nets.resnet import Bottleneck
from segjax.nets.scan import scanned
from segjax.ops.resize import bilinear
from segjax.typing import Array

INIT = nn.initializers.normal(0.001)


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm and, unless told otherwise, ReLU."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    activate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        size = (self.kernel_size, self.kernel_size)
        x = Conv(self.features, size, self.stride, use_bias=False, kernel_init=INIT, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train)
        return nn.relu(x) if self.activate else x


class BasicBlock(nn.Module):
    """Two 3x3 ConvNorms, the second without activation, added to the input."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        y = ConvNorm(self.features, dtype=self.dtype, name="unit1")(x, train)
        y = ConvNorm(self.features, activate=False, dtype=self.dtype, name="unit2")(y, train)
        return nn.relu(x + y), None


class HighResolutionModule(nn.Module):
    """Each map through its own branch of blocks, then each the sum of all of them brought to its size: maps -> maps of the same shapes.

    A coarser one comes through a 1x1 ConvNorm and bilinear up-sampling, a finer one through 3x3 ConvNorms of stride 2, of which the last
    has no activation.
    """

    widths: Sequence[int]
    blocks: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> tuple[tuple[Array, ...], None]:
        branch = scanned(BasicBlock, self.blocks)
        maps = [
            branch(width, self.dtype, name=f"branch{n}")(x, train)[0] for n, (width, x) in enumerate(zip(self.widths, maps, strict=True))
        ]
        fused = []
        for i in range(len(maps)):
            parts = [x if i == j else self._brought(x, i, j, maps[i].shape, train) for j, x in enumerate(maps)]
            fused.append(nn.relu(sum(parts[1:], start=parts[0])))
        return tuple(fused), None

    def _brought(self, x: Array, i: int, j: int, shape: Sequence[int], train: bool) -> Array:
        """Map j as map i, of that shape, takes it."""
        last: dict[str, Any] = dict(features=self.widths[i], activate=False, dtype=self.dtype)
        if j > i:
            return bilinear(ConvNorm(kernel_size=1, name=f"fuse{i}_{j}", **last)(x, train), (shape[1], shape[2]), align_corners=True)
        for k in range(i - j - 1):
            x = ConvNorm(self.widths[j], stride=2, dtype=self.dtype, name=f"fuse{i}_{j}_{k}")(x, train)
        return ConvNorm(stride=2, name=f"fuse{i}_{j}_{i - j - 1}", **last)(x, train)


class HRNet(nn.Module):
    """Backbone over normalised images [B,H,W,3]: the list of its four maps, strides 4 to 32 (sizes rounded up), widths W, 2W, 4W, 8W.

    modules: of stages 2, 3, 4. blocks: of each branch in a module. stem: channels of the two first convolutions; stage 1 is `bottlenecks`
    bottlenecks of `bottleneck_width`.
    """

    width: int = 48
    modules: Sequence[int] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64
    bottlenecks: int = 4
    bottleneck_width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        for n in (1, 2):
            x = ConvNorm(self.stem, stride=2, dtype=self.dtype, name=f"stem{n}")(x.astype(self.dtype), train)
        shared: dict[str, Any] = dict(stride_in_1x1=False, kernel_init=INIT, dtype=self.dtype)
        project = self.stem != 4 * self.bottleneck_width
        x, _ = Bottleneck(self.bottleneck_width, project=project, name="layer1_0", **shared)(x, train)
        if self.bottlenecks > 1:
            x, _ = scanned(Bottleneck, self.bottlenecks - 1)(self.bottleneck_width, name="layer1_rest", **shared)(x, train)
        maps = [x]
        for n, modules in enumerate(self.modules, 1):
            widths = tuple(self.width * 2**k for k in range(n + 1))
            kept = [self._kept(x, width, f"transition{n}_{k}", train) for k, (x, width) in enumerate(zip(maps, widths, strict=False))]
            new = ConvNorm(widths[-1], stride=2, dtype=self.dtype, name=f"transition{n}_{n}")(maps[-1], train)
            stage = scanned(HighResolutionModule, modules)(widths, self.blocks, self.dtype, name=f"stage{n + 1}")
            maps = list(stage((*kept, new), train)[0])
        return maps

    def _kept(self, x: Array, width: int, name: str, train: bool) -> Array:
        """A map at its branch's width."""
        return x if x.shape[-1] == width else ConvNorm(width, dtype=self.dtype, name=name)(x, train)
