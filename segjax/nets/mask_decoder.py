"""Mask2Former's transformer decoder: queries that look at the maps through their own last mask (Cheng et al. 2022, arXiv 2112.01527).

Layer i looks at map i mod 3, so three layers are one body, scanned; where their number is no multiple of three, the others follow one by
one. Source: mask2former_transformer_decoder.py of facebookresearch/Mask2Former. A layer's mask is made at the size of the map that the
next layer looks at, from the mask features resized once to each of the three sizes: a mask is linear in them, so that is the full-size
mask resized, and only those full-size masks are made that are asked for, all at once. No dropout, as in every public configuration.

The queries, which are few, and what decides where they look are float32 whatever the compute dtype: a pixel of a small mask that changes
sides changes its query.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.layers import ACTIVATIONS, Conv, Dense, LayerNorm
from segjax.nets.mask_classifiers import MaskPooling, TextClassifier
from segjax.nets.projection import TORCH_LINEAR
from segjax.nets.scan import scanned
from segjax.ops.attention import attention
from segjax.ops.positions import sine_positions
from segjax.ops.resize import bilinear
from segjax.typing import Array

XAVIER = nn.initializers.xavier_uniform()


class MultiHeadAttention(nn.Module):
    """query [B,N,C] to key and value [B,M,C]: [B,N,C]. mask: bool [B,N,M], True = may attend."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
        channels = query.shape[-1]
        dense = lambda name: Dense(channels, kernel_init=XAVIER, dtype=self.dtype, name=name)
        split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)
        query, key, value = (split(dense(f"{name}_proj")(x)) for name, x in zip("qkv", (query, key, value), strict=True))
        mixed = attention(query, key, value, mask=None if mask is None else mask[:, None])
        return dense("out_proj")(mixed.reshape(*mixed.shape[:2], channels))


class DecoderLayer(nn.Module):
    """Masked attention to a map, attention among the queries, an MLP; residuals whose norm comes after, or before with `pre_norm`."""

    heads: int
    hidden: int
    pre_norm: bool = False
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, query: Array, memory: Array, position: Array, mask: Array) -> Array:
        """x [B,Q,C], the queries' positions [Q,C], a map [B,N,C], its positions [N,C], mask bool [B,Q,N] with a True in every row."""
        x = self._residual("cross", x, lambda y: self._attention("cross")(y + query, memory + position, memory, mask))
        x = self._residual("self", x, lambda y: self._attention("self")(y + query, y + query, y))
        return self._residual("mlp", x, self._mlp)

    def _attention(self, name: str) -> MultiHeadAttention:
        return MultiHeadAttention(self.heads, self.dtype, name=f"{name}_attn")

    def _residual(self, name: str, x: Array, branch) -> Array:
        norm = LayerNorm(name=f"{name}_norm")
        return x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))

    def _mlp(self, x: Array) -> Array:
        dense = lambda features, name: Dense(features, kernel_init=XAVIER, dtype=self.dtype, name=name)
        return dense(x.shape[-1], "fc2")(ACTIVATIONS[self.activation](dense(self.hidden, "fc1")(x)))


class MaskEmbedding(nn.Module):
    """Queries [...,C] to vectors [...,mask_channels] whose product with the mask features is the mask: norm, then three dense layers."""

    channels: int
    mask_channels: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Returns the normalised queries and the vectors."""
        normal = LayerNorm(name="decoder_norm")(x)
        dense = lambda features, n: Dense(features, kernel_init=TORCH_LINEAR, name=f"layer{n}")
        y = nn.relu(dense(self.channels, 0)(normal))
        return normal, dense(self.mask_channels, 2)(nn.relu(dense(self.channels, 1)(y)))


def visible(vectors: Array, features: Array) -> Array:
    """Where each query may look: inside its mask, bool [B,Q,N]; everywhere if the mask is empty. vectors [B,Q,E], features [B,N,E]."""
    logits = jnp.einsum("bqe,bne->bqn", vectors, features, preferred_element_type=jnp.float32)
    inside = logits >= 0  # sigmoid >= 1/2
    return inside | ~inside.any(-1, keepdims=True)


class Round(nn.Module):
    """A layer for each map."""

    layer: Any  # keyword arguments of a DecoderLayer, as a tuple of pairs

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], shared: dict[str, Any]) -> tuple[tuple[Array, Array], Array]:
        """carry: x [B,Q,C] and where it may look in the first map. Returns the next ones, and x after each layer [maps,B,Q,C]."""
        (x, mask), found = carry, []
        for n, (memory, position) in enumerate(zip(shared["memory"], shared["position"], strict=True)):
            x = DecoderLayer(**dict(self.layer), name=f"layer{n}")(x, shared["query"], memory, position, mask)
            mask = look(shared, x, n + 1)
            found.append(x)
        return (x, mask), jnp.stack(found)


def look(shared: dict[str, Any], x: Array, n: int) -> Array:
    """Where queries x [B,Q,C] may look in map n, counted round; no gradient.

    All layers share one mask embedding, so a scan over layers takes its parameters as values.
    """
    features = shared["features"][n % len(shared["features"])]
    embedding = MaskEmbedding(x.shape[-1], features.shape[-1], parent=None)
    vectors: Any = embedding.apply({"params": shared["embedding"]}, jax.lax.stop_gradient(x))
    return visible(vectors[1], features)


class MaskDecoder(nn.Module):
    """Mask features and maps (coarse to fine) to one class and one mask for every query, before the first layer and after each.

    "No object" has a classifier of its own, so `class_embed` has a row for each class and no other.
    layers: the public configurations count one more, for the prediction before the first. project: a 1x1 convolution of every map even
    where it has `channels` already. class_head: of `nets.mask_classifiers.KINDS`; synonyms: for "text", how many words each class has.
    """

    num_classes: int
    channels: int = 256
    queries: int = 100
    heads: int = 8
    layers: int = 9
    hidden: int = 2048
    pre_norm: bool = False
    activation: str = "relu"
    project: bool = False
    class_head: str = "linear"
    synonyms: tuple[int, ...] = ()
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Array, maps: Sequence[Array], text: Array | None = None) -> dict[str, Array]:
        """features [B,h,w,E], maps [B,.,.,C'] -> float32 class_logits [B,Q,num_classes+1] (the last class is "no object"), mask_logits
        [B,h,w,Q], aux: both before the first layer and after each but the last, [layers,B,...], queries [1+layers,B,Q,C] before the norm.
        text [S+1,E]: words and void (`mask_classifiers.with_void`), for the "text" classifier.
        """
        if self.channels % self.heads or self.channels % 2:
            raise ConfigError(f"mask decoder: {self.channels} channels, {self.heads} heads: expected an even multiple of the heads")
        embedding = MaskEmbedding(self.channels, features.shape[-1], name="mask_embed")
        table = lambda name, length: self.param(name, nn.initializers.normal(1.0), (length, self.channels))
        x = jnp.broadcast_to(table("query_feat", self.queries), (len(features), self.queries, self.channels))
        flat = lambda y: y.reshape(*y.shape[:-3], -1, y.shape[-1])
        level = table("level_embed", len(maps))
        sizes = [(y.shape[1], y.shape[2]) for y in maps]
        still = jax.lax.stop_gradient(features).astype(jnp.float32)
        levels = [flat(bilinear(still, size)) for size in sizes]
        mask = visible(jax.lax.stop_gradient(embedding(x)[1]), levels[0])
        shared = {
            "query": table("query_embed", self.queries),
            "memory": [flat(self._projected(y, n)) + level[n].astype(self.dtype) for n, y in enumerate(maps)],
            "position": [flat(sine_positions(*size, self.channels)).astype(self.dtype) for size in sizes],
            "features": levels,
            "embedding": embedding.variables["params"],
        }
        queries = self._decoded(x, mask, shared)
        normal, vectors = embedding(queries)
        masks = lambda vectors, out: jnp.einsum(
            f"bhwe,{out}bqe->{out}bhwq", features, vectors.astype(features.dtype), preferred_element_type=jnp.float32
        )
        aux, last = {"mask_logits": masks(vectors[:-1], "p")}, {"mask_logits": masks(vectors[-1], "")}
        if self.class_head != "linear":
            pool = MaskPooling(self.channels, name="mask_pooling")
            normal += jnp.concatenate([pool(features, aux["mask_logits"]), pool(features, last["mask_logits"])[None]])
        classes = self._classes(normal, text)
        return last | {"class_logits": classes[-1], "aux": aux | {"class_logits": classes[:-1]}, "queries": queries}

    def _classes(self, x: Array, text: Array | None) -> Array:
        """Queries [...,C] -> class logits [...,K+1]."""
        if self.class_head == "text":
            assert text is not None
            return TextClassifier(self.synonyms, name="text_classifier")(x, text)
        classify = lambda count, name: Dense(count, kernel_init=TORCH_LINEAR, name=name)(x)
        return jnp.concatenate([classify(self.num_classes, "class_embed"), classify(1, "no_object")], -1)

    def _projected(self, x: Array, n: int) -> Array:
        if x.shape[-1] == self.channels and not self.project:
            return x.astype(self.dtype)
        return Conv(self.channels, (1, 1), kernel_init=XAVIER, dtype=self.dtype, name=f"input_proj_{n}")(x)

    def _decoded(self, x: Array, mask: Array, shared: dict[str, Any]) -> Array:
        """The queries before the first layer and after each, [1+layers,B,Q,C]."""
        own = ("heads", "hidden", "pre_norm", "activation", "dtype")
        layer = tuple((name, getattr(self, name)) for name in own)
        found, count = [x[None]], len(shared["memory"])
        rounds = self.layers // count
        if rounds:
            (x, mask), after = scanned(Round, rounds, unroll=self.unroll)(layer, name="rounds")((x, mask), shared)
            found.append(after.reshape(-1, *x.shape))
        for n in range(rounds * count, self.layers):
            memory, position = shared["memory"][n % count], shared["position"][n % count]
            x = DecoderLayer(**dict(layer), name=f"layer{n}")(x, shared["query"], memory, position, mask)
            mask = look(shared, x, n + 1)
            found.append(x[None])
        return jnp.concatenate(found)
