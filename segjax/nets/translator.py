"""DiGA's image translator: an encoder and a decoder that give images of one domain the look of another (trained: translator_cycle.py).

Source: fy-vision/DiGA model/model_noaux.py and model_util.py. Every convolution mirrors its border; norms are instance
norms without parameters, so the bias before one does nothing (it is there because the public files hold it). Images are
"caffe_128" inside (BGR, 0..255 minus the mean, over 128: about [-1, 1], what tanh gives back).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.deeplab import CAFFE_MEAN_BGR, normalise
from segjax.nets.layers import Conv
from segjax.nets.scan import scanned
from segjax.ops.normalization import group_norm
from segjax.typing import Array

MULTIPLE = 4
"""Two strides of 2: an image is a multiple of this high and wide, or padded to one."""
SMALLEST = 8
"""Two pixels at stride 4, enough to mirror one."""


def to_network(image: Array) -> Array:
    """RGB in [0,1] as the translator and its losses see it."""
    return normalise(image.astype(jnp.float32), "caffe_128")


def to_image(x: Array) -> Array:
    """The way back, float32 RGB, clipped to [0,1]: tanh reaches a little beyond."""
    image = (x.astype(jnp.float32) * 128.0 + jnp.asarray(CAFFE_MEAN_BGR)) / 255.0
    return jnp.clip(image[..., ::-1], 0.0, 1.0)


def check_size(image: Array, whole: bool = False) -> None:
    """ConfigError: an image of less than 8 pixels, or with `whole` one whose sizes are no multiples of 4."""
    height, width = image.shape[1:3]
    if min(height, width) < SMALLEST or (whole and (height % MULTIPLE or width % MULTIPLE)):
        multiples = f" and multiples of {MULTIPLE}" if whole else ""
        raise ConfigError(f"translator: an image of {height}x{width}: its sizes must be at least {SMALLEST}{multiples}: set data.crop")


class MirrorConv(nn.Module):
    """Convolution over a mirrored border; instance norm and ReLU where asked for."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 1
    norm: bool = True
    activate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        border = (self.padding, self.padding)
        x = jnp.pad(x, ((0, 0), border, border, (0, 0)), mode="reflect")
        x = Conv(self.features, (self.kernel_size, self.kernel_size), self.stride, padding=0, dtype=self.dtype, name="conv")(x)
        if self.norm:
            x = group_norm(x, jnp.ones(self.features), jnp.zeros(self.features), 1e-5, self.features)
        return nn.relu(x) if self.activate else x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with norms, the first activated, added to the input; nothing after the sum."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:
        y = MirrorConv(x.shape[-1], 3, dtype=self.dtype, name="unit1")(x)
        return x + MirrorConv(x.shape[-1], 3, activate=False, dtype=self.dtype, name="unit2")(y), None


class Encoder(nn.Module):
    """A normalised image [B,H,W,3] -> its content [B,H//4,W//4,4 width]."""

    width: int = 64
    blocks: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = MirrorConv(self.width, 7, 1, 3, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        for n in (1, 2):
            x = MirrorConv(self.width * 2**n, 4, 2, dtype=self.dtype, name=f"down{n}")(x)
        return scanned(ResidualBlock, self.blocks)(self.dtype, name="blocks")(x)[0]


class Decoder(nn.Module):
    """Content [B,h,w,4 width] -> a normalised image [B,4h,4w,3], float32 in (-1, 1)."""

    width: int = 64
    blocks: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x, _ = scanned(ResidualBlock, self.blocks)(self.dtype, name="blocks")(x.astype(self.dtype))
        for n in (1, 2):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = MirrorConv(self.width * 4 // 2**n, 5, 1, 2, dtype=self.dtype, name=f"up{n}")(x)
        x = MirrorConv(3, 7, 1, 3, norm=False, activate=False, dtype=self.dtype, name="last")(x)
        return nn.tanh(x.astype(jnp.float32))


class Translator(nn.Module):
    """The look of one domain given to RGB images [B,H,W,3] in [0,1] of another: RGB in [0,1], same size, float32.

    A size that is no multiple of 4 is padded with its edge and cut again (the original gives a smaller image). 8 pixels at least.
    """

    width: int = 64
    blocks: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> Array:
        del train  # instance norms and no dropout: the same in training
        height, width = image.shape[1:3]
        check_size(image)
        missing = [(0, -size % MULTIPLE) for size in (height, width)]
        x = jnp.pad(to_network(image), ((0, 0), *missing, (0, 0)), mode="edge")
        content = Encoder(self.width, self.blocks, self.dtype, name="encoder")(x)
        return to_image(Decoder(self.width, self.blocks, self.dtype, name="decoder")(content)[:, :height, :width])
