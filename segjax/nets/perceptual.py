"""VGG19's features for perceptual losses: five activations of growing depth, from torchvision's ImageNet weights.

Source: fy-vision/DiGA util/loss.py (Vgg19, VGGLoss), pix2pixHD's before it. Submodules keep torchvision's indices (`features_0` ..).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Conv
from segjax.ops.pooling import max_pool
from segjax.typing import Array

CONVS = ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,))
WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""What each activation's mean absolute difference counts."""


class VGG19(nn.Module):
    """relu1_1, relu2_1, relu3_1, relu4_1, relu5_1 of images [B,H,W,3]: a list of five, strides 1 to 16. Nothing is normalised here."""

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        del train  # no BatchNorm, no dropout
        x, outputs = x.astype(self.dtype), []
        for indices, width in zip(CONVS, self.widths, strict=True):
            if outputs:
                x = max_pool(x, window=2, stride=2, padding=0)
            for index in indices:
                x = nn.relu(Conv(width, dtype=self.dtype, name=f"features_{index}")(x))
                if index == indices[0]:
                    outputs.append(x)
        return outputs
