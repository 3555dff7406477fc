"""Llama (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288): a causal language model whose cache of keys and values is an argument.

Llama 1, 2 and 3 and everything that Hugging Face calls LlamaForCausalLM: grouped queries, tied or own output embedding, biases, stretched
rotary embeddings. Nothing is mutable: a call takes a `Cache` (or none) and returns the next one, so that decoding is a plain loop.
Differences in half precision: the residual stream, the rotation and the logits are float32 (transformers rounds them).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from segjax.nets.layers import ACTIVATIONS, Dense, replicated
from segjax.nets.scan import scanned
from segjax.ops.attention import attention
from segjax.ops.rotary import rotary_table, rotate
from segjax.typing import Array


class Cache(NamedTuple):
    """What the tokens so far left behind, in slots: token n of a call takes slot `used` + n in every row, padding too.

    keys, values: [layers,B,S,K,D], rotated already. mask: bool [B,S], slots that hold a token and no padding. used: int32 scalar.
    """

    keys: Array
    values: Array
    mask: Array
    used: Array

    def with_room(self, slots: int) -> "Cache":
        """The same with `slots` more, empty."""
        wider = lambda x, axis: jnp.pad(x, [(0, slots if n == axis else 0) for n in range(x.ndim)])
        return Cache(wider(self.keys, 2), wider(self.values, 2), wider(self.mask, 1), self.used)

    def extended(self, keys: Array, values: Array, mask: Array) -> "Cache":
        """With the N tokens of a call, keys and values [layers,B,N,K,D], mask bool [B,N], written behind those that are there."""
        write = lambda old, new, axis: lax.dynamic_update_slice_in_dim(old, new, self.used, axis)
        return Cache(write(self.keys, keys, 2), write(self.values, values, 2), write(self.mask, mask, 1), self.used + mask.shape[1])


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32; returned in `dtype`."""

    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.epsilon)
        return (x * scale).astype(self.dtype)


class LlamaBlock(nn.Module):
    """x + attention(norm x), then x + MLP(norm x), the MLP gated. Submodules carry Hugging Face's names."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    activation: str
    attention_bias: bool
    mlp_bias: bool
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, past: Any, cos: Array, sin: Array, mask: Array, hidden: bool) -> tuple[Array, Any]:
        """x [B,N,D]; past: keys and values [B,S,K,D] of earlier tokens, or None; mask [B,N,S + N]; returns x and what the scan stacks."""
        norm = lambda name: RMSNorm(self.epsilon, dtype=self.dtype, name=name)
        dense = lambda features, bias, name: Dense(features, use_bias=bias, dtype=self.dtype, name=name)
        heads = lambda y, count: y.reshape(*y.shape[:2], count, self.head_dim)
        y = norm("input_layernorm")(x)
        query = rotate(heads(dense(self.heads * self.head_dim, self.attention_bias, "q_proj")(y), self.heads), cos, sin)
        key = rotate(heads(dense(self.kv_heads * self.head_dim, self.attention_bias, "k_proj")(y), self.kv_heads), cos, sin)
        value = heads(dense(self.kv_heads * self.head_dim, self.attention_bias, "v_proj")(y), self.kv_heads)
        behind = lambda old, new: jnp.concatenate([old, new], 1)
        keys, values = (key, value) if past is None else (behind(past[0], key), behind(past[1], value))
        mixed = grouped_attention(query, keys, values, mask)
        x = x + dense(x.shape[-1], self.attention_bias, "o_proj")(mixed.reshape(*x.shape[:2], -1))
        y = norm("post_attention_layernorm")(x)
        gate = ACTIVATIONS[self.activation](dense(self.mlp_width, self.mlp_bias, "gate_proj")(y))
        y = dense(x.shape[-1], self.mlp_bias, "down_proj")(gate * dense(self.mlp_width, self.mlp_bias, "up_proj")(y))
        x = x + y
        return x, (key, value, x if hidden else None)


def grouped_attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Attention of query [B,N,K * G,D], G of whose heads share each head of key and value [B,M,K,D]; mask bool [B,N,M].

    The sharing heads stand as further tokens, so that neither keys nor values are repeated.
    """
    b, n, heads, dims = query.shape
    group = heads // key.shape[2]
    query = query.reshape(b, n, -1, group, dims).swapaxes(2, 3).reshape(b, n * group, -1, dims)
    mixed = attention(query, key, value, mask=jnp.repeat(mask, group, axis=1)[:, None])
    return mixed.reshape(b, n, group, -1, dims).swapaxes(2, 3).reshape(b, n, heads, dims)


class Llama(nn.Module):
    """Token ids to the logits of each next token.

    width, mlp_width: of the residual stream and of the MLP. kv_heads: a divisor of `heads`. tied: the output embedding is the input's.
    rope, rope_theta, rope_scaling: kind, base and numbers of the rotary embedding (`ops.rotary`), the numbers as pairs (name, value).
    context_length: of the training. bos_token_id, eos_token_ids: what begins a text and what may end it, for whoever decodes.
    """

    vocab_size: int = 32000
    width: int = 4096
    mlp_width: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    context_length: int = 4096
    activation: str = "silu"
    epsilon: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: str = "default"
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, float], ...] = ()
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Array, mask: Array | None = None, cache: Cache | None = None, *, last: bool = False, hidden: bool = False
    ) -> dict[str, Any]:
        """ids int [B,N], after the tokens of the cache; mask [B,N], true (or 1) for tokens, false for padding on either side; returns

        logits float32 [B,N,V], or with `last` [B,1,V], of each row's last token. cache: with these tokens; without a given one it has N
        slots, a given one must have N free. Positions count a row's tokens and skip its padding, where the logits mean nothing.
        hidden [layers + 1,B,N,D], where asked for: the embeddings and every block's output, before the final norm.
        """
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        before = jnp.zeros(ids.shape[:1], jnp.int32) if cache is None else cache.mask.sum(1)
        positions = before[:, None] + jnp.cumsum(mask, 1) - 1
        table = positions, positions[:, -1] + 1, self.head_dim, self.rope_theta, self.rope, dict(self.rope_scaling), self.context_length
        embedding = self.param("embed_tokens", nn.initializers.normal(0.02), (self.vocab_size, self.width))
        embedding = replicated(embedding.astype(self.dtype))
        start = embedding[ids].astype(jnp.float32)
        past = None if cache is None else (cache.keys, cache.values)
        inputs = past, *rotary_table(*table), _visible(mask, cache), hidden
        in_axes = (nn.broadcast if cache is None else 0, *[nn.broadcast] * 4)
        blocks = scanned(LlamaBlock, self.layers, in_axes=in_axes, unroll=self.unroll)
        x, (keys, values, outputs) = blocks(**self._block(), name="layers")(start, *inputs)
        following = Cache(keys, values, mask, jnp.int32(ids.shape[1])) if cache is None else cache.extended(keys, values, mask)
        result = {"logits": self._logits(_last(x, mask) if last else x, embedding), "cache": following}
        return result | ({"hidden": jnp.concatenate([start[None], outputs])} if hidden else {})

    def _block(self) -> dict[str, Any]:
        names = ("heads", "kv_heads", "head_dim", "mlp_width", "activation", "attention_bias", "mlp_bias", "epsilon", "dtype")
        return {name: getattr(self, name) for name in names}

    def _logits(self, x: Array, embedding: Array) -> Array:
        x = RMSNorm(self.epsilon, dtype=self.dtype, name="norm")(x)
        if self.tied:
            head = embedding.T
        else:
            head = self.param("lm_head", nn.initializers.normal(0.02), (self.width, self.vocab_size))
            head = replicated(head.astype(self.dtype))
        return jnp.matmul(x, head, preferred_element_type=jnp.float32)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (jax.ShapeDtypeStruct((1, 2), jnp.int32),)


def _visible(mask: Array, cache: Cache | None) -> Array:
    """bool [B,N,S + N]: which slots of the cache and which of the call's own tokens each of them sees."""
    b, n = mask.shape
    own = jnp.tril(jnp.ones((n, n), bool)) & mask[:, None]
    if cache is None:
        return own
    return jnp.concatenate([jnp.broadcast_to(cache.mask[:, None], (b, n, cache.mask.shape[1])), own], -1)


def _last(x: Array, mask: Array) -> Array:
    """Of x [B,N,D] each row's last token that is no padding, [B,1,D]."""
    place = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], 1)
    return jnp.take_along_axis(x, place[:, None, None], 1)
