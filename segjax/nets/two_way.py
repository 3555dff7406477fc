"""The two-way transformer of SAM's mask decoder: prompt tokens and image tokens attend to each other.

Image tokens come in G groups of an image: one that all P prompts share, as long as nothing of a prompt has entered it, else P. So the
projections of an image are computed once and not once a prompt until the first attention from the image to the tokens. The two layers
differ (the first has no positions in its self-attention), so they are not scanned.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from segjax.nets.layers import ACTIVATIONS, Dense, LayerNorm, parameter, replicated
from segjax.ops.attention import attention
from segjax.ops.attention_to_groups import attention_to_groups
from segjax.ops.conv import product
from segjax.ops.folded_attention import image_to_tokens, tokens_to_image
from segjax.typing import Array


class _Weights(nn.Module):
    """Kernel [inputs,features] and bias of a dense layer, for whoever multiplies by them."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array]:
        kernel = parameter(self, "kernel", nn.initializers.truncated_normal(0.02), (inputs, self.features))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return replicated(kernel.astype(self.dtype)), bias.astype(self.dtype)


class Attention(nn.Module):
    """query [B,Gq,N,C] to key and value [B,Gk,M,C]: [B,G,N,C]; a single group of either side serves all of the other's.

    On CPU the projections of many pixels are folded into those of few tokens (`ops.folded_attention`).
    """

    num_heads: int
    internal: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
        """mask: bool [B,Gk,M], True = may be attended to."""
        features, groups, split = query.shape[-1], max(query.shape[1], key.shape[1]), (self.num_heads, self.internal // self.num_heads)
        sizes = {"q_proj": (features, self.internal), "k_proj": (key.shape[-1], self.internal), "v_proj": (value.shape[-1], self.internal)}
        sizes["out_proj"] = self.internal, features
        weights = {name: _Weights(size[1], self.dtype, name=name)(size[0]) for name, size in sizes.items()}

        def dense(x: Array, name: str) -> Array:
            kernel, bias = weights[name]
            return product(x.astype(self.dtype), kernel) + bias

        def heads(x: Array, name: str) -> Array:
            return dense(x, name).reshape(*x.shape[:-1], *split)

        def plain(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
            query, key, value = heads(query, "q_proj"), heads(key, "k_proj"), heads(value, "v_proj")
            b, asked, n = query.shape[:3]
            if asked < groups:
                mixed = attention_to_groups(query[:, 0], key, value, mask)
            elif key.shape[1] < groups:  # one image's keys: all prompts' queries are one long row
                mixed = attention(query.reshape(b, -1, *query.shape[3:]), key[:, 0], value[:, 0])
            else:
                query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
                mixed = attention(query, key, value, mask=None if mask is None else mask.reshape(-1, 1, 1, mask.shape[-1]))
            return dense(mixed.reshape(b, groups, n, self.internal), "out_proj")

        def folded(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
            (b, _, n, _), by_head = query.shape, {name: kernel.reshape(-1, *split) for name, (kernel, _) in weights.items()}
            if n < key.shape[2]:
                query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (query, key, value))
                bias = weights["v_proj"][1].reshape(split)
                mixed = tokens_to_image(heads(query, "q_proj"), key, value, by_head["k_proj"], by_head["v_proj"], bias)
                return dense(mixed.reshape(b, groups, n, self.internal), "out_proj")
            key, value, bias = heads(key, "k_proj"), heads(value, "v_proj"), weights["q_proj"][1].reshape(split)
            kernel, out = weights["out_proj"][0].reshape(*split, features), weights["out_proj"][1]
            return image_to_tokens(query, key, value, by_head["q_proj"], bias, kernel, mask) + out

        few, many = sorted((query.shape[2], key.shape[2]))
        if key.shape[1] < groups or few == many or few * self.num_heads > self.internal:
            return plain(query, key, value, mask)
        return lax.platform_dependent(query, key, value, mask, cpu=folded, default=plain)


class MLP(nn.Module):
    """Two dense layers with the named activation between."""

    hidden: int
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = ACTIVATIONS[self.activation](Dense(self.hidden, dtype=self.dtype, name="lin1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="lin2")(y)


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; post-norm residuals.

    first: no positions in the self-attention. efficient: EfficientSAM's form of it, where the first one has a residual too and the later
    ones add the positions to queries, keys, values and the residual alike.
    """

    num_heads: int
    mlp_dim: int
    first: bool
    efficient: bool = False
    activation: str = "relu"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, image: Array, token_pe: Array, image_pe: Array, mask: Array | None) -> tuple[Array, Array]:
        norm = lambda name: LayerNorm(self.epsilon, self.dtype, name=name)
        width = tokens.shape[-1]
        cross = lambda name: Attention(self.num_heads, width // 2, self.dtype, name=name)
        own = Attention(self.num_heads, width, self.dtype, name="self_attn")
        if self.efficient:
            tokens = tokens if self.first else tokens + token_pe
            tokens = tokens + own(tokens, tokens, tokens, mask)
        elif self.first:
            tokens = own(tokens, tokens, tokens, mask)
        else:
            tokens = tokens + own(tokens + token_pe, tokens + token_pe, tokens, mask)
        tokens = norm("norm1")(tokens)
        placed = image + image_pe
        tokens = norm("norm2")(tokens + cross("cross_attn_token_to_image")(tokens + token_pe, placed, image))
        tokens = norm("norm3")(tokens + MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(tokens))
        mixed = cross("cross_attn_image_to_token")(placed, tokens + token_pe, tokens, mask)
        return tokens, norm("norm4")(image + mixed)


class TwoWayTransformer(nn.Module):
    """tokens [B,P,T,C], image [B,1 or P,N,C], its positions [N,C], mask bool [B,P,T] -> (tokens [B,P,outputs,C], image [B,P,N,C]).

    outputs: the first so many tokens, which are all that is read afterwards; the last attention is theirs alone.
    """

    depth: int
    num_heads: int
    mlp_dim: int
    efficient: bool = False
    activation: str = "relu"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, image: Array, image_pe: Array, mask: Array | None, outputs: int) -> tuple[Array, Array]:
        tokens, image, image_pe = (x.astype(self.dtype) for x in (tokens, image, image_pe))
        token_pe, shared = tokens, (self.efficient, self.activation, self.epsilon, self.dtype)
        for n in range(self.depth):
            block = TwoWayBlock(self.num_heads, self.mlp_dim, n == 0, *shared, name=f"layers_{n}")
            tokens, image = block(tokens, image, token_pe, image_pe, mask)
        final = Attention(self.num_heads, tokens.shape[-1] // 2, self.dtype, name="final_attn_token_to_image")
        tokens, token_pe = tokens[:, :, :outputs], token_pe[:, :, :outputs]
        tokens = tokens + final(tokens + token_pe, image + image_pe, image)
        return LayerNorm(1e-5, self.dtype, name="norm_final_attn")(tokens), image
