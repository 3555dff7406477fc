"""SAM (Kirillov et al. 2023, arXiv 2304.02643): an image is encoded once, then prompts in any number are decoded to masks.

    network = Sam()
    features = network.apply(variables, image, sizes, method="encode")             # [B,h,w,256]
    masks, iou = network.apply(variables, features, points, labels, method="decode")  # [B,P,3,4h,4w], [B,P,3]

Images and prompts are both batched: points [B,P,S,2]; an image's features are not repeated for its prompts. Prompts are packed by
`ops.prompts.pack`; full-size masks come from `ops.masks`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.sam_decoder import MaskDecoder
from segjax.nets.sam_encoder import ImageEncoder
from segjax.nets.sam_prompts import PromptEncoder
from segjax.ops.prompts import NOT_A_POINT
from segjax.typing import Array

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0,1] (ImageNet's)."""


def normalise(image: Array, sizes: Array | None = None) -> Array:
    """(image - MEAN) / STD, float32; with sizes [B,2] = (height, width) of each image's own part, zero to the right of and below it."""
    x = (image.astype(jnp.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    if sizes is None:
        return x
    inside = [jnp.arange(length)[None] < sizes[:, axis, None] for axis, length in enumerate(image.shape[1:3])]
    return jnp.where(inside[0][:, :, None, None] & inside[1][:, None, :, None], x, 0.0)


class Sam(nn.Module):
    """Fields: the image encoder's (`ImageEncoder`), then the decoder's; the defaults are ViT-B.

    decoder_heads: 8 in every published file; no file tells it, so a file of another width has to be opened with decoder_heads set.
    """

    image_size: int = 1024
    patch: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    features: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden: int = 256
    num_masks: int = 3
    decoder_epsilon: float = 1e-5
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    stretch = False
    """Images keep their proportions and are padded to the frame at their right and lower edge."""
    max_slots = None
    """How many points and corners a prompt may have: any."""

    def setup(self):
        self.image_encoder = self.make_encoder()
        self.prompt_encoder = PromptEncoder(self.features, self.mask_channels, self.dtype)
        sizes = (self.decoder_depth, self.decoder_heads, self.decoder_mlp_dim, self.iou_hidden, self.num_masks)
        self.mask_decoder = MaskDecoder(*sizes, self.decoder_epsilon, dtype=self.dtype)

    @nn.nowrap
    def make_encoder(self) -> nn.Module:
        """The image encoder: the one thing in which MobileSAM differs."""
        sizes = (self.image_size, self.patch, self.embed_dim, self.depth, self.num_heads, self.mlp_dim, self.features)
        return ImageEncoder(*sizes, tuple(self.global_blocks), self.window, self.unroll, self.dtype)

    def encode(self, image: Array, sizes: Array | None = None) -> Array:
        """RGB [B,H,W,3] in [0,1] -> features [B,H/16,W/16,C]. sizes [B,2]: height and width of each image within its padded frame."""
        return self.image_encoder(normalise(image, sizes))

    def decode(
        self, features: Array, points: Array, labels: Array, masks: Array | None = None, *, multimask: bool = True, best: bool = False
    ) -> tuple[Array, Array]:
        """(mask logits float32 [B,P,M,4h,4w], predicted IoU float32 [B,P,M]); M = 3 with multimask, else the one for clear prompts.

        best: of those the one of highest predicted IoU, M = 1.

        points [B,P,S,2] as (x, y) in pixels of the frame, labels [B,P,S] (`ops.prompts`), masks: logits [B,P,4h,4w]. A prompt in S slots
        with PADDING gives what it gives without: padded slots are masked out of every attention (Hugging Face's label -10 is a zero token
        that still takes part).
        """
        check_heads(self.decoder_heads, features.shape[-1])
        grid = features.shape[1], features.shape[2]
        frame = grid[0] * self.patch, grid[1] * self.patch
        tokens, dense, positions = self.prompt_encoder(points, labels, masks, grid, frame)
        return self.mask_decoder(features, positions, tokens, labels >= NOT_A_POINT, dense, multimask, best)

    def __call__(self, image: Array, points: Array, labels: Array, masks: Array | None = None):
        """`decode` of `encode`, with three masks a prompt."""
        return self.decode(self.encode(image), points, labels, masks)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of one image with one prompt."""
        return example(self.image_size)


def example(size: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """One image [1,size,size,3], one prompt of one slot."""
    shape = jax.ShapeDtypeStruct
    return shape((1, size, size, 3), jnp.float32), shape((1, 1, 1, 2), jnp.float32), shape((1, 1, 1), jnp.int32)


def check_heads(heads: int, width: int) -> None:
    """ConfigError unless the decoder's width divides into twice as many heads (its cross-attention has half the width)."""
    if heads < 1 or width % (2 * heads):
        told = "is told by no file of this width" if heads == 0 else f"does not divide half of the width {width}"
        raise ConfigError(f"decoder_heads={heads or 'unknown'} {told}: give it with --set decoder_heads=N (8 in every published SAM)")
