"""Object-contextual representations over HRNet: each pixel attends to one vector per class (Yuan et al., arXiv 1909.11065).

Source: HRNet/HRNet-Semantic-Segmentation lib/models/seg_hrnet_ocr.py; fy-vision/DiGA model/networks/ocrnet_module.py is the same
network under other names.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.deeplab import normalise
from segjax.nets.hrnet import HRNet
from segjax.nets.layers import BatchNorm, ChannelDropout, Conv
from segjax.ops.attention import attention
from segjax.ops.resize import bilinear
from segjax.typing import Array


def object_regions(features: Array, logits: Array) -> Array:
    """[B,K,C]: for each class the mean of features [B,h,w,C], weighted by the softmax over space of its logits [B,h,w,K]."""
    share = jax.nn.softmax(logits.astype(jnp.float32).reshape(logits.shape[0], -1, logits.shape[-1]), axis=1)
    pixels = features.reshape(features.shape[0], -1, features.shape[-1])
    regions = jnp.einsum("bnk,bnc->bkc", share.astype(features.dtype), pixels, preferred_element_type=jnp.float32)
    return regions.astype(features.dtype)


class _Unit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    features: int
    kernel_size: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = Conv(self.features, (self.kernel_size, self.kernel_size), use_bias=self.use_bias, dtype=self.dtype, name="conv")
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(conv(x), train))


class OCRHead(nn.Module):
    """[B,h,w,C] -> logits and auxiliary logits (the soft object regions), both float32 [B,h,w,K], and the feature [B,h,w,channels].

    The attention of pixels to regions is scaled by key_channels ** -0.5. The feature has lost channels to dropout in training, as there.
    """

    num_classes: int
    channels: int = 512
    key_channels: int = 256
    dropout: float = 0.05
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array, Array]:
        b, h, w, inputs = x.shape
        unit = lambda features, name, x, *options: _Unit(features, *options, dtype=self.dtype, name=name)(x, train)
        classifier = lambda name: Conv(self.num_classes, (1, 1), name=name)
        aux_logits = classifier("aux_classifier")(unit(inputs, "aux", x, 1, True))
        pixels = unit(self.channels, "pixels", x, 3, True)
        regions = object_regions(pixels, aux_logits)[:, :, None]
        query = unit(self.key_channels, "query2", unit(self.key_channels, "query1", pixels))
        key = unit(self.key_channels, "key2", unit(self.key_channels, "key1", regions))
        value = unit(self.key_channels, "value", regions)
        context = attention(query.reshape(b, h * w, 1, -1), key, value).reshape(b, h, w, -1)
        context = unit(self.channels, "context", context)
        feature = ChannelDropout(self.dropout)(unit(self.channels, "fusion", jnp.concatenate([context, pixels], -1)), train)
        return classifier("classifier")(feature), aux_logits, feature


class HRNetOCR(nn.Module):
    """HRNet with object-contextual representations over RGB images [B,H,W,3] in [0,1]; stride 4, sizes rounded up.

    Returns {"logits", "aux_logits": float32 [B,h,w,K], "features": [B,h,w,channels]}. HRNet's four maps are up-sampled with aligned
    corners to the first one's size and concatenated (720 channels for W48). normalization: as `nets.deeplab.normalise`, "imagenet" in the
    authors' releases, "caffe_128_rgb" in DiGA. 70,372,678 parameters for W48 with 19 classes.
    """

    num_classes: int
    width: int = 48
    modules: Sequence[int] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64
    bottlenecks: int = 4
    bottleneck_width: int = 64
    channels: int = 512
    key_channels: int = 256
    normalization: str = "imagenet"
    dropout: float = 0.05
    dtype: DTypeLike = jnp.float32
    align_corners: bool = True

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        sizes = (self.width, self.modules, self.blocks, self.stem, self.bottlenecks, self.bottleneck_width)
        maps = HRNet(*sizes, dtype=self.dtype, name="backbone")(normalise(image.astype(jnp.float32), self.normalization), train)
        size = maps[0].shape[1], maps[0].shape[2]
        x = jnp.concatenate([bilinear(x, size, align_corners=True) for x in maps], -1)
        head = OCRHead(self.num_classes, self.channels, self.key_channels, self.dropout, self.dtype, name="head")
        logits, aux_logits, feature = head(x, train)
        return {"logits": logits, "aux_logits": aux_logits, "features": feature}
