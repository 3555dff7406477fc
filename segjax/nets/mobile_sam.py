"""MobileSAM (Zhang et al. 2023, arXiv 2306.14289): SAM's prompt encoder and mask decoder behind a TinyViT."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.sam import Sam, normalise
from segjax.nets.tiny_vit import TinyViT
from segjax.typing import Array


class MobileSam(Sam):
    """Used as `Sam`. BatchNorm runs on its stored statistics unless `train`.

    The ViT's fields that Sam has are not read here: embed_dims, depths, heads and window_sizes are the TinyViT's.
    """

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def make_encoder(self) -> TinyViT:
        """The TinyViT."""
        stages = (self.embed_dims, self.depths, self.heads, self.window_sizes)
        return TinyViT(*map(tuple, stages), out_channels=self.features, unroll=self.unroll, dtype=self.dtype)

    def encode(self, image: Array, sizes: Array | None = None, train: bool = False) -> Array:
        """As `Sam.encode`."""
        return self.image_encoder(normalise(image, sizes), train)

    def __call__(self, image: Array, points: Array, labels: Array, masks: Array | None = None, train: bool = False):
        """`decode` of `encode`, with three masks a prompt."""
        return self.decode(self.encode(image, train=train), points, labels, masks)
