"""SAM's mask decoder: tokens of masks and of their quality meet the image; masks are products of them with up-scaled features."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import ACTIVATIONS, ConvTranspose, Dense, GroupNorm, LayerNorm, gelu
from segjax.nets.two_way import TwoWayTransformer
from segjax.typing import Array


class Head(nn.Module):
    """Three dense layers (`hidden`, `hidden`, `features`) with the named activation between."""

    hidden: int
    features: int
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for n in range(2):
            x = ACTIVATIONS[self.activation](Dense(self.hidden, dtype=self.dtype, name=f"layers_{n}")(x))
        return Dense(self.features, dtype=self.dtype, name="layers_2")(x)


class MaskDecoder(nn.Module):
    """Image features, prompts -> (mask logits float32 [B,P,M,4h,4w], predicted IoU float32 [B,P,M]), M = 3 with `multimask`, else 1.

    epsilon: of the two-way blocks' norms, 1e-5 in the original files and 1e-6 in Hugging Face's. efficient: EfficientSAM's form (GELU
    throughout, a GroupNorm of one group when up-scaling, its own self-attention). Source: segment-anything modeling/mask_decoder.py.
    """

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_hidden: int = 256
    num_masks: int = 3
    epsilon: float = 1e-5
    efficient: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: Array, positions: Array, prompts: Array, valid: Array, dense: Array, multimask: bool = True, best: bool = False
    ) -> tuple[Array, Array]:
        """features [B,h,w,C], their positions [h,w,C], prompts [B,P,S,C] with valid bool [B,P,S], dense: broadcasts to [B,P,h,w,C].
        best: of the masks the one of highest predicted IoU alone, M = 1."""
        b, h, w, c = features.shape
        p, activation = prompts.shape[1], "gelu" if self.efficient else "relu"
        names = ("iou_token", 1), ("mask_tokens", self.num_masks + 1)
        output = jnp.concatenate([self.param(name, nn.initializers.normal(1.0), (count, c)) for name, count in names])
        tokens = jnp.concatenate([jnp.broadcast_to(output, (b, p, *output.shape)), prompts], 2)
        mask = jnp.concatenate([jnp.ones((b, p, output.shape[0]), bool), valid], 2)
        image = (features.astype(jnp.float32)[:, None] + dense).reshape(b, -1, h * w, c)
        shared = (self.efficient, activation, self.epsilon, self.dtype)
        transformer = TwoWayTransformer(self.depth, self.num_heads, self.mlp_dim, *shared, name="transformer")
        tokens, image = transformer(tokens, image, positions.reshape(h * w, c), mask, output.shape[0])

        chosen = slice(1, None) if multimask else slice(0, 1)
        quality = Head(self.iou_hidden, self.num_masks + 1, activation, self.dtype, name="iou_prediction_head")(tokens[:, :, 0])
        heads = nn.vmap(Head, in_axes=2, out_axes=2, variable_axes={"params": 0}, split_rngs={"params": True})
        head = heads(c, c // 8, activation, self.dtype, name="output_hypernetworks_mlps")
        factors, quality = head(tokens[:, :, 1:])[:, :, chosen], quality[:, :, chosen].astype(jnp.float32)
        if best:
            place = jnp.argmax(quality, 2, keepdims=True)
            factors, quality = jnp.take_along_axis(factors, place[..., None], 2), jnp.take_along_axis(quality, place, 2)
        fine = self._upscale(image.reshape(b * p, h * w, c)).reshape(b, p, 16 * h * w, c // 8)
        masks = jnp.einsum("bpmc,bpnc->bpmn", factors, fine, preferred_element_type=jnp.float32)
        masks = masks.reshape(b, p, -1, h, w, 2, 2, 2, 2).transpose(0, 1, 2, 3, 5, 7, 4, 6, 8)  # rows, then columns, coarse to fine
        return masks.reshape(b, p, -1, 4 * h, 4 * w), quality

    def _upscale(self, x: Array) -> Array:
        """[N,h*w,C] -> [N,h*w,2,2,2,2,C/8]: each pixel's (row, column) halves, and theirs. Pixels do not meet here, so they stay apart."""
        n, pixels, c = x.shape
        x = ConvTranspose(c // 4, use_bias=True, dtype=self.dtype, name="upscale_conv1")(x.reshape(-1, 1, 1, c))
        name = "upscale_layer_norm"
        norm = GroupNorm(1, 1e-5, self.dtype, name=name) if self.efficient else LayerNorm(1e-6, self.dtype, name=name)
        x = gelu(norm(x.reshape(n, 4 * pixels, c // 4)))
        x = ConvTranspose(c // 8, use_bias=True, dtype=self.dtype, name="upscale_conv2")(x.reshape(-1, 1, 1, c // 4))
        return gelu(x).reshape(n, pixels, 2, 2, 2, 2, c // 8)
