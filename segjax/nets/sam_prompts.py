"""SAM's prompt encoder: points, box corners and mask logits become tokens and a dense map, with random Fourier positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from segjax.nets.layers import Conv, LayerNorm, gelu
from segjax.ops.prompts import NOT_A_POINT
from segjax.typing import Array


class FourierPositions(nn.Module):
    """(x, y) in 0..1 -> [sin, cos] of 2 pi (2 xy - 1) G; the random matrix G [2, features / 2] is a buffer and never trains."""

    features: int

    @nn.compact
    def __call__(self, xy: Array) -> Array:
        draw = lambda: jax.random.normal(self.make_rng("params"), (2, self.features // 2))
        matrix = self.variable("batch_stats", "positional_encoding_gaussian_matrix", draw).value
        phase = 2 * np.pi * jnp.matmul(2 * xy.astype(jnp.float32) - 1, matrix, precision=lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], -1)


def grid_centres(grid: tuple[int, int]) -> Array:
    """(x, y) of the centres of a grid's cells in 0..1, float32 [h,w,2]."""
    y, x = ((np.arange(size, dtype=np.float32) + 0.5) / size for size in grid)
    return jnp.asarray(np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1))


class MaskEmbedding(nn.Module):
    """Mask logits [B,4h,4w,1] -> [B,h,w,features]."""

    features: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for n, width in ((1, self.hidden // 4), (2, self.hidden)):
            x = Conv(width, (2, 2), 2, padding=0, dtype=self.dtype, name=f"conv{n}")(x)
            x = gelu(LayerNorm(1e-6, self.dtype, name=f"layer_norm{n}")(x))
        return Conv(self.features, (1, 1), dtype=self.dtype, name="conv3")(x)


class PromptEncoder(nn.Module):
    """Prompts of P objects in each of B images. Source: facebookresearch/segment-anything modeling/prompt_encoder.py.

    Here the slots of a prompt come packed (`ops.prompts.pack`), so that one shape holds any mixture of points and boxes.
    """

    features: int = 256
    mask_channels: int = 16
    dtype: DTypeLike = jnp.float32

    def setup(self):
        embedding = nn.initializers.normal(1.0)
        self.pe_layer = FourierPositions(self.features)
        self.point_embeddings = self.param("point_embeddings", embedding, (4, self.features))
        self.not_a_point_embed = self.param("not_a_point_embed", embedding, (1, self.features))
        self.no_mask_embed = self.param("no_mask_embed", embedding, (1, self.features))
        self.mask_embed = MaskEmbedding(self.features, self.mask_channels, self.dtype)

    def __call__(self, points: Array, labels: Array, masks: Array | None, grid: tuple[int, int], frame: tuple[int, int]):
        """(tokens [B,P,S,C], dense map [B,P,h,w,C] or [1,1,1,1,C] without masks, positions of the grid [h,w,C]), float32.

        points [B,P,S,2] in pixels of the frame (height, width), labels [B,P,S]; masks: logits [B,P,4h,4w] (of an earlier prediction: a
        binary mask is no logit map, scale it to some -10 and 10), for every prompt or for none. What stands in PADDING slots is for nobody.
        """
        positions = self.pe_layer((points.astype(jnp.float32) + 0.5) / np.array([frame[1], frame[0]], np.float32))
        kinds = jnp.concatenate([self.not_a_point_embed, self.point_embeddings])
        kind = jnp.clip(labels, NOT_A_POINT, len(kinds) - 2) - NOT_A_POINT
        tokens = jnp.where((labels > NOT_A_POINT)[..., None], positions, 0.0) + kinds[kind]
        if masks is None and self.is_initializing():
            masks = jnp.zeros((*labels.shape[:2], 4 * grid[0], 4 * grid[1]))
        if masks is None:
            dense = self.no_mask_embed[None, None, None]
        else:
            dense = self.mask_embed(masks.reshape(-1, *masks.shape[2:], 1))
            dense = dense.reshape(*masks.shape[:2], *dense.shape[1:]).astype(jnp.float32)
        return tokens, dense, self.pe_layer(grid_centres(grid))
