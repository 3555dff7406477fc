"""DeepLabV2 on ResNet-50/101 and VGG16: atrous classifiers summed over four rates.

Source: AdaptSegNet / ADVENT / FDA model/deeplab*.py. AdaptSegNet and DACS return from inside the loop and so sum rates 6 and 12
alone (`branches=2`); ADVENT and FDA sum all four (`branches=4`, the default). 43,901,068 parameters (ResNet-101, 19 classes),
44,601,560 with two levels, 29,573,004 on VGG16.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import replicated
from segjax.nets.resnet import ResNet
from segjax.nets.scan import Remat
from segjax.nets.vgg import VGG16
from segjax.ops.conv import atrous_sum
from segjax.typing import Array

DILATIONS = (6, 12, 18, 24)
CAFFE_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(image: Array, kind: str) -> Array:
    """An RGB image in [0,1] as a network wants it: "caffe" (BGR, 0..255 minus the mean), "imagenet" (mean and deviation) or "none".

    "caffe_128" is caffe's over 128, roughly [-1, 1] (DiGA); "caffe_128_rgb" the same in RGB (DiGA's HRNet).
    """
    if kind in ("caffe", "caffe_128", "caffe_128_rgb"):
        centred = image[..., ::-1] * 255.0 - jnp.asarray(CAFFE_MEAN_BGR, image.dtype)
        if kind != "caffe":
            centred = centred / 128.0
        return centred[..., ::-1] if kind == "caffe_128_rgb" else centred
    if kind == "imagenet":
        return (image - jnp.asarray(IMAGENET_MEAN, image.dtype)) / jnp.asarray(IMAGENET_STD, image.dtype)
    if kind == "none":
        return image
    raise ConfigError(f"model.normalization={kind!r}: expected caffe, caffe_128, caffe_128_rgb, imagenet or none")


class AtrousClassifier(nn.Module):
    """Sum of 3x3 convolutions with dilations 6, 12, 18, 24 and biases; logits float32. All rates hold parameters, `branches` are summed."""

    num_classes: int
    branches: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.normal(0.01), (len(DILATIONS), 3, 3, x.shape[-1], self.num_classes))
        bound = 1.0 / np.sqrt(9 * x.shape[-1])
        centred = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)  # torch's default
        bias = self.param("bias", centred, (len(DILATIONS), self.num_classes))
        n = self.branches
        if not 1 <= n <= len(DILATIONS):
            raise ConfigError(f"model.branches={n}: expected 1 to {len(DILATIONS)}, the first so many of the rates {DILATIONS}")
        return atrous_sum(x, replicated(kernel[:n].astype(self.dtype)), bias[:n], DILATIONS[:n]).astype(jnp.float32)


class DeepLabV2(nn.Module):
    """DeepLabV2 over RGB images [B,H,W,3] in [0,1]. Returns {"logits": float32 [B,h,w,K]} at stride 8 (512x1024 -> 65x129 on ResNet).

    With `multi_level` also "aux_logits" from layer3. `backbone` is "resnet50", "resnet101" or "vgg16"; `width` scales it (tests).
    `style`, `unroll` and `remat` are the ResNet's: "v1c" with normalization="imagenet" and branches=2 is the DeepLabV2 of DAFormer's
    comparisons.
    """

    num_classes: int
    backbone: str = "resnet101"
    multi_level: bool = False
    branches: int = 4
    normalization: str = "caffe"
    style: str = "caffe"
    width: int = 64
    vgg_widths: Sequence[int] = (64, 128, 256, 512, 512)
    vgg_fc: int = 1024
    unroll: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32
    align_corners: bool = True

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        x = normalise(image.astype(jnp.float32), self.normalization)
        if self.backbone == "vgg16":
            features = VGG16(self.vgg_widths, self.vgg_fc, dtype=self.dtype, name="features")(x, train)
        elif self.backbone in ("resnet50", "resnet101"):
            depth = int(self.backbone[len("resnet") :])
            init = nn.initializers.normal(0.01)  # the family's initial values, replaced by pretrained weights in every paper
            settings = {"style": self.style, "kernel_init": init, "unroll": self.unroll, "remat": self.remat, "dtype": self.dtype}
            features = ResNet(depth, self.width, **settings, name="backbone")(x, train)
        else:
            raise ConfigError(f"model.backbone={self.backbone!r}: expected resnet50, resnet101 or vgg16")
        classifier = lambda name: AtrousClassifier(self.num_classes, self.branches, self.dtype, name=name)
        outputs = {"logits": classifier("classifier")(features[-1]), "features": features[-1]}
        if self.multi_level:
            outputs["aux_logits"] = classifier("aux_classifier")(features[-2])
        return outputs
