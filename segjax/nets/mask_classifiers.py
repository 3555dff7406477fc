"""What gives a Mask2Former's queries their classes: a linear layer, or one of CLOUDS' others, which also look at each mask's pixels.

"linear": Mask2Former's, and CLOUDS' as released. "pooled" (CLOUDS' BisMultiScaleMaskedTransformerDecoder): the mean of the mask features
inside of each mask is added to its query first. "text" (its MultiScaleMaskedTransformerDecoder, fc-clip's): that sum, projected, is
compared with words.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from segjax.nets.layers import Dense, LayerNorm
from segjax.nets.projection import TORCH_LINEAR
from segjax.ops.open_vocabulary import cosine_logits, pool_by_masks
from segjax.typing import Array

KINDS = ("linear", "pooled", "text")


class MaskPooling(nn.Module):
    """The mean of mask features [B,h,w,E] inside of each mask [...,B,h,w,Q], normed and projected: [...,B,Q,channels]."""

    channels: int

    @nn.compact
    def __call__(self, features: Array, mask_logits: Array) -> Array:
        pooled = LayerNorm(name="norm")(pool_by_masks(features, mask_logits))
        return Dense(self.channels, kernel_init=TORCH_LINEAR, name="proj")(pooled)


class TextClassifier(nn.Module):
    """Queries [...,C] -> [...,K+1]: three dense layers to the space of the words, then `ops.open_vocabulary.cosine_logits`."""

    synonyms: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Array, text: Array) -> Array:
        dense = lambda features, n: Dense(features, kernel_init=TORCH_LINEAR, name=f"layer{n}")
        channels = x.shape[-1]
        y = dense(text.shape[-1], 2)(nn.relu(dense(channels, 1)(nn.relu(dense(channels, 0)(x)))))
        scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())
        return cosine_logits(y, text, scale, self.synonyms)


def with_void(words: Array, void: Array) -> Array:
    """Words [S,E] and the learned embedding of "no object" [1,E], all of length 1: [S+1,E]."""
    return jnp.concatenate([words, void / jnp.maximum(jnp.linalg.norm(void, axis=-1, keepdims=True), 1e-12)])
