"""The transformer of Stable Diffusion's UNet: self-attention over pixels, cross-attention to the text, GEGLU.

The text's keys and values depend on the prompt alone: `keys_values` computes them for every layer once, and the layers take them as
`memory` in place of the text. Source: diffusers models/transformers/transformer_2d.py and models/attention.py.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Dense, GroupNorm, LayerNorm, gelu
from segjax.ops.attention import attention
from segjax.typing import Array

Memory = Mapping[str, Any]
"""Nested as the parameters are: {..., "attn2": {"key": [...,B,M,C], "value": [...,B,M,C]}}, scanned layers stacked in front."""


class Attention(nn.Module):
    """Multi-head attention of x [B,N,C] to itself, to `context` [B,M,E], or to ready keys and values (`memory`)."""

    heads: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, memory: Memory | None = None) -> Array:
        dense = lambda name, use_bias=self.use_bias: Dense(x.shape[-1], use_bias, dtype=self.dtype, name=name)
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        query = dense("to_q")(x)
        if memory is None:
            context = x if context is None else context
            memory = {"key": dense("to_k")(context), "value": dense("to_v")(context)}
        mixed = attention(split(query), split(memory["key"].astype(self.dtype)), split(memory["value"].astype(self.dtype)))
        return dense("to_out_0", True)(mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """GEGLU: x W1 * GELU(x W2), four times as wide, and back. The GELU is exact (upstream's Flax had the tanh form)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden, gate = jnp.split(Dense(8 * x.shape[-1], dtype=self.dtype, name="net_0_proj")(x), 2, axis=-1)
        return Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden * gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each after a LayerNorm and added to its input."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, memory: Memory | None = None) -> Array:
        norm = lambda name: LayerNorm(dtype=self.dtype, name=name)
        x = x + Attention(self.heads, dtype=self.dtype, name="attn1")(norm("norm1")(x))
        memory = None if memory is None else memory["attn2"]
        x = x + Attention(self.heads, dtype=self.dtype, name="attn2")(norm("norm2")(x), context, memory)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class Transformer(nn.Module):
    """Transformer blocks (one, in Stable Diffusion) over the pixels of x [B,H,W,C], between two linear layers, added to x.

    The GroupNorm's epsilon is 1e-6 whatever the UNet's own is. `proj_in` and `proj_out` are 1x1 convolutions in Stable Diffusion 1.x
    and linear layers in 2.x: the same product.
    """

    heads: int
    layers: int = 1
    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, memory: Memory | None = None) -> Array:
        batch, height, width, features = x.shape
        y = GroupNorm(self.groups, 1e-6, self.dtype, name="norm")(x).reshape(batch, height * width, features)
        y = Dense(features, dtype=self.dtype, name="proj_in")(y)
        for n in range(self.layers):
            name = f"transformer_blocks_{n}"
            y = TransformerBlock(self.heads, self.dtype, name=name)(y, context, None if memory is None else memory[name])
        return x + Dense(features, dtype=self.dtype, name="proj_out")(y).reshape(x.shape)


def keys_values(params: Mapping[str, Any], context: Array, dtype: DTypeLike = jnp.float32) -> Memory:
    """Keys and values of the text [B,M,E] for every cross-attention found in `params`, stacked as the parameters are."""
    found: dict[str, Any] = {}
    context = context.astype(dtype)
    for name, part in params.items():
        if name == "attn2":
            kernels = {"key": part["to_k"]["kernel"], "value": part["to_v"]["kernel"]}
            found[name] = {kind: jnp.einsum("bme,...ec->...bmc", context, kernel.astype(dtype)) for kind, kernel in kernels.items()}
        elif isinstance(part, Mapping) and (inner := keys_values(part, context, dtype)):
            found[name] = inner
    return found
