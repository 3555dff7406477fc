"""CLIP's text tower: token ids to hidden states and to one vector a text."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Dense, LayerNorm
from segjax.nets.transformer import residual_blocks
from segjax.typing import Array

LEGACY_EOS = 2
"""An `eos_token_id` of 2 in a public config means: the end of a text is its largest id (the configs of OpenAI's weights are wrong so)."""


class TextTransformer(nn.Module):
    """Causal transformer over token ids, as Radford et al. 2021 (arXiv 2103.00020) and every public CLIP.

    Without `embed_dim` it is the text encoder of Stable Diffusion (Hugging Face CLIPTextModel).
    activation: "quick_gelu" (OpenAI's weights) or "gelu" (most of LAION's). eos_token_id: the id whose first place gives the pooled
    vector; 2 stands for the largest id of the text, as in open_clip. Texts may be shorter than `context_length`, not longer.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_width: int = 2048
    activation: str = "quick_gelu"
    eos_token_id: int = LEGACY_EOS
    embed_dim: int | None = None
    epsilon: float = 1e-5
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None, hidden: bool = False) -> dict[str, Array]:
        """ids int [B,N]; mask [B,N], true (or 1) where a token may be attended to; returns

        last [B,N,D]: after the final norm. pooled [B,D]: its end token. projected [B,embed_dim]: not normalised, only with `embed_dim`.
        hidden [layers + 1,B,N,D], where asked for: the embeddings and every block's output, before the final norm; hidden[-2] is what
        Stable Diffusion calls the penultimate layer (SD 2's public text encoder has lost its last block already, and needs `last`).
        ValueError: ids longer than the context.
        """
        if ids.shape[1] > self.context_length:
            raise ValueError(f"texts of {ids.shape[1]} tokens are longer than the context of {self.context_length}: truncate them")
        tokens = self.param("token_embedding", nn.initializers.normal(0.02), (self.vocab_size, self.width))
        positions = self.param("positional_embedding", nn.initializers.normal(0.01), (self.context_length, self.width))
        start = (tokens[ids] + positions[: ids.shape[1]]).astype(self.dtype)
        x, outputs = residual_blocks(
            start,
            self.layers,
            self.unroll,
            last_keeps_values=False,
            mask=None if mask is None else mask.astype(bool)[:, None, None],
            hidden=hidden,
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            causal=True,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        last = LayerNorm(self.epsilon, dtype=self.dtype, name="ln_final")(x)
        pooled = last[jnp.arange(ids.shape[0]), self._end(ids)]
        result = {"last": last, "pooled": pooled}
        if self.embed_dim is not None:
            result["projected"] = Dense(self.embed_dim, use_bias=False, dtype=self.dtype, name="text_projection")(pooled)
        if hidden:
            result["hidden"] = jnp.concatenate([start[None], outputs])
        return result

    def _end(self, ids: Array) -> Array:
        """The place of each text's end token, [B]."""
        return jnp.argmax(ids if self.eos_token_id == LEGACY_EOS else ids == self.eos_token_id, axis=-1)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (jax.ShapeDtypeStruct((1, self.context_length), jnp.int32),)
