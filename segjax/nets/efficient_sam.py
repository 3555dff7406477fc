"""EfficientSAM (Xiong et al. 2023, arXiv 2312.00863): a plain, small ViT before a decoder of SAM's kind, six prompt slots, no mask prompts.

Source: yformer/EfficientSAM efficient_sam/*.py. Its predictions come sorted by IoU, here they come in the order of their tokens.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import Conv
from segjax.nets.sam import check_heads, example, normalise
from segjax.nets.sam_decoder import MaskDecoder
from segjax.nets.sam_encoder import Block, Neck
from segjax.nets.sam_prompts import FourierPositions, grid_centres
from segjax.nets.scan import scanned
from segjax.ops.bicubic import bicubic
from segjax.ops.prompts import NOT_A_POINT, POSITIVE
from segjax.typing import Array

SLOTS = 6
"""Prompt slots that the decoder sees, always: those that hold nothing are filled with a learned token at (-1, -1)."""


class PlainViT(nn.Module):
    """Normalised images [B,H,W,3] -> features [B,H/16,W/16,out_channels]: global attention in every block, absolute positions.

    The positions are stored as of the pre-training (pos_grid x pos_grid behind one for a class token, which is dropped) and resized
    bicubically, always.
    """

    patch: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_dim: int = 768
    pos_grid: int = 14
    out_channels: int = 256
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if x.shape[1] % self.patch or x.shape[2] % self.patch or self.num_heads < 1 or self.embed_dim % self.num_heads:
            raise ConfigError(
                f"image of {x.shape[1]}x{x.shape[2]}, patch {self.patch}, embed_dim {self.embed_dim} in {self.num_heads} heads: "
                "expected a size that the patch divides and heads that divide the width: give num_heads"
            )
        x = Conv(self.embed_dim, (self.patch, self.patch), self.patch, padding=0, dtype=self.dtype, name="patch_embed")(x)
        stored = self.param("pos_embed", nn.initializers.zeros, (1, self.pos_grid**2 + 1, self.embed_dim))
        positions = stored[:, 1:].reshape(1, self.pos_grid, self.pos_grid, self.embed_dim)
        x = x + bicubic(positions, (x.shape[1], x.shape[2])).astype(self.dtype)
        blocks = scanned(Block, self.depth, unroll=self.unroll)(self.num_heads, self.mlp_dim, 0, 0, self.dtype, name="blocks")
        return Neck(self.out_channels, self.dtype, name="neck")(blocks(x, None)[0])


class PointEncoder(nn.Module):
    """Points and box corners as tokens [B,P,6,C]; a negative point has its position alone, as there is no embedding for it."""

    features: int = 256

    def setup(self):
        self.pe_layer = FourierPositions(self.features)
        names = ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings")
        self.kinds = [self.param(name, nn.initializers.normal(1.0), (1, self.features)) for name in names]

    def __call__(self, points: Array, labels: Array, frame: tuple[int, int]) -> Array:
        """points [B,P,S,2] in pixels of the frame, labels [B,P,S] (`ops.prompts`); the first six slots count, the rest is cut off."""
        wide = [(0, 0), (0, 0), (0, max(0, SLOTS - labels.shape[2]))]
        points = jnp.pad(points, (*wide, (0, 0)))[:, :, :SLOTS].astype(jnp.float32)
        labels = jnp.pad(labels, wide, constant_values=NOT_A_POINT)[:, :, :SLOTS, None]
        points = jnp.where(labels <= NOT_A_POINT, -1.0, points)
        tokens = self.pe_layer((points + 0.5) / np.array([frame[1], frame[0]], np.float32))
        tokens = tokens + jnp.where(labels <= NOT_A_POINT, self.kinds[0], 0.0)
        for kind, embedding in enumerate(self.kinds[1:], POSITIVE):
            tokens = tokens + jnp.where(labels == kind, embedding, 0.0)
        return tokens

    def positions(self, grid: tuple[int, int]) -> Array:
        """Of the image's tokens [h,w,C]."""
        return self.pe_layer(grid_centres(grid))


class EfficientSam(nn.Module):
    """Used as `segjax.nets.sam.Sam`, on images stretched to the frame. The defaults are EfficientSAM-Ti; -S is 384 wide in 6 heads."""

    image_size: int = 1024
    patch: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    mlp_dim: int = 768
    pos_grid: int = 14
    features: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden: int = 256
    num_masks: int = 3
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    stretch = True
    max_slots = SLOTS

    def setup(self):
        shape = (self.patch, self.embed_dim, self.depth, self.num_heads, self.mlp_dim, self.pos_grid, self.features, self.unroll)
        self.image_encoder = PlainViT(*shape, self.dtype)
        self.prompt_encoder = PointEncoder(self.features)
        decoder = (self.decoder_depth, self.decoder_heads, self.decoder_mlp_dim, self.iou_hidden, self.num_masks, 1e-5, True)
        self.mask_decoder = MaskDecoder(*decoder, self.dtype)

    def encode(self, image: Array, sizes: Array | None = None) -> Array:
        """RGB [B,H,W,3] in [0,1], stretched to the frame -> features [B,H/16,W/16,C]. sizes is for networks that pad, and not read."""
        del sizes
        return self.image_encoder(normalise(image))

    def decode(
        self, features: Array, points: Array, labels: Array, masks: Array | None = None, *, multimask: bool = True, best: bool = False
    ) -> tuple[Array, Array]:
        """As `Sam.decode`; ConfigError for mask prompts, which this network has not learned."""
        if masks is not None:
            raise ConfigError("EfficientSAM takes no mask prompts: prompt it with points and boxes")
        check_heads(self.decoder_heads, features.shape[-1])
        grid = features.shape[1], features.shape[2]
        tokens = self.prompt_encoder(points, labels, (grid[0] * self.patch, grid[1] * self.patch))
        valid = jnp.ones(tokens.shape[:3], bool)
        positions, dense = self.prompt_encoder.positions(grid), jnp.zeros((1, 1, 1, 1, 1))
        return self.mask_decoder(features, positions, tokens, valid, dense, multimask, best)

    def __call__(self, image: Array, points: Array, labels: Array):
        """`decode` of `encode`, with three masks a prompt."""
        return self.decode(self.encode(image), points, labels)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of one image with one prompt."""
        return example(self.image_size)
