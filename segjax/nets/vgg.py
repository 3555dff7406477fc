"""VGG16 as DeepLabV2 uses it: pool4 and pool5 removed, conv5 dilated by 2, fc6 and fc7 as 3x3 convolutions dilated by 4, stride 8.

Source: wasidennis/AdaptSegNet model/deeplab_vgg.py. Submodules keep its indices (`features_0` .. `features_31`).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Conv
from segjax.ops.pooling import max_pool
from segjax.typing import Array

_CONVS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (23, 25, 27))


class VGG16(nn.Module):
    """Backbone over normalised images [B,H,W,3]: the features after each stage and, last, after fc7 (stride 8, 1,024 channels)."""

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    fc: int = 1024
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> list[Array]:
        del train  # no BatchNorm, no dropout
        x = x.astype(self.dtype)
        outputs = []
        for stage, (indices, width) in enumerate(zip(_CONVS, self.widths, strict=True)):
            for index in indices:
                x = nn.relu(Conv(width, dilation=2 if stage == 4 else 1, dtype=self.dtype, name=f"features_{index}")(x))
            outputs.append(x)
            if stage < 3:
                x = max_pool(x, window=2, stride=2, padding=0)
        for index in (29, 31):
            x = nn.relu(Conv(self.fc, dilation=4, dtype=self.dtype, name=f"features_{index}")(x))
        return [*outputs, x]
