"""CLIP's ResNets: three convolutions as stem, average pools before strides, attention instead of a mean (arXiv 2103.00020, section 2.4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import BatchNorm, Conv, Dense
from segjax.nets.scan import scanned
from segjax.ops.attention import attention
from segjax.ops.pooling import average_pool
from segjax.ops.resize import bilinear
from segjax.typing import Array


class Bottleneck(nn.Module):
    """1x1, 3x3, mean over stride x stride, 1x1 with BatchNorm, added to the input or to the projection of its mean."""

    width: int
    stride: int = 1
    project: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        conv = lambda features, size, name: Conv(features, (size, size), use_bias=False, dtype=self.dtype, name=name)
        norm = lambda name: BatchNorm(dtype=self.dtype, name=name)
        y = nn.relu(norm("bn1")(conv(self.width, 1, "conv1")(x), train))
        y = nn.relu(norm("bn2")(conv(self.width, 3, "conv2")(y), train))
        y = norm("bn3")(conv(4 * self.width, 1, "conv3")(average_pool(y, self.stride)), train)
        if self.project:
            x = norm("downsample_bn")(conv(4 * self.width, 1, "downsample_conv")(average_pool(x, self.stride)), train)
        return nn.relu(x + y), None


class AttentionPool(nn.Module):
    """One vector of a feature map [B,h,w,C]: its mean attends to itself and to every location.

    side: of the square grid of position embeddings, resized bilinearly for maps of another shape (as fc-clip and CLOUDS).
    """

    embed_dim: int
    heads: int
    side: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, dense: bool) -> tuple[Array, Array | None]:
        """Returns the pooled vector [B,embed_dim] and, where `dense`, for every location its value projected likewise without positions
        or attention [B,h,w,embed_dim] (MaskCLIP, arXiv 2112.01071)."""
        b, h, w, c = x.shape
        linear = lambda features, name: Dense(features, dtype=self.dtype, name=name)
        positions = self.param("positional_embedding", nn.initializers.normal(c**-0.5), (1 + self.side**2, c))
        positions = positions_at(positions, self.side, (h, w))
        locations = x.reshape(b, h * w, c)
        mean = locations.mean(1, keepdims=True, dtype=jnp.float32).astype(self.dtype)
        tokens = jnp.concatenate([mean, locations], axis=1) + positions.astype(self.dtype)
        split = lambda y: y.reshape(b, -1, self.heads, c // self.heads)
        value, project = linear(c, "v_proj"), linear(self.embed_dim, "c_proj")
        pooled = attention(split(linear(c, "q_proj")(tokens[:, :1])), split(linear(c, "k_proj")(tokens)), split(value(tokens)))
        return project(pooled.reshape(b, c)), project(value(x)) if dense else None


def positions_at(positions: Array, side: int, size: tuple[int, int]) -> Array:
    """Position embeddings [1+side^2,C] of the mean and a square grid, the grid resized to `size`: [1+h*w,C]."""
    if size == (side, side):
        return positions
    channels = positions.shape[1]
    grid = bilinear(positions[1:].reshape(1, side, side, channels), size)
    return jnp.concatenate([positions[:1], grid.reshape(-1, channels)])


def masked_attention_pool(tower: "ModifiedResNet", params: Any, top: Array, mask_logits: Array) -> Array:
    """The attention pool of the tower's last map [B,h,w,C] inside of each mask [B,h,w,Q] (logit above 0): float32 [B,Q,embed_dim].

    The mean of the whole map asks; it attends to locations alone, not to itself. A query whose mask is empty attends evenly (there: NaN).
    """
    b, h, w, c = top.shape
    params = params["attnpool"]
    shared: dict[str, Any] = dict(dtype=tower.dtype, parent=None)
    linear: Any = lambda name, features, x: Dense(features, **shared).apply({"params": params[name]}, x)
    positions = positions_at(params["positional_embedding"], tower.image_size // tower.stride, (h, w)).astype(tower.dtype)
    locations = top.reshape(b, h * w, c).astype(tower.dtype)
    query = locations.mean(1, keepdims=True, dtype=jnp.float32).astype(tower.dtype) + positions[:1]
    split = lambda y: y.reshape(*y.shape[:2], tower.heads, -1)
    asked = jnp.repeat(split(linear("q_proj", c, query)), mask_logits.shape[-1], 1)
    key, value = (split(linear(name, c, locations + positions[1:])) for name in ("k_proj", "v_proj"))
    inside = (mask_logits > 0).reshape(b, 1, h * w, -1).swapaxes(2, 3)
    pooled = attention(asked, key, value, mask=inside)
    return linear("c_proj", tower.embed_dim, pooled.reshape(b, -1, c)).astype(jnp.float32)


class ModifiedResNet(nn.Module):
    """CLIP's ResNet over normalised images [B,H,W,3]; RN50 is layers (3, 4, 6, 3), RN101 (3, 4, 23, 3), wider ones RN50x4 to RN50x64.

    The first block of each stage is `layerN_0`, the others `layerN_rest`, scanned. image_size: of training, which fixes the grid of the
    attention pool's positions. Trained weights are used with `train=False` (running statistics), also where they are frozen in training.
    """

    embed_dim: int
    image_size: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False, dense: bool = False) -> dict[str, Array]:
        """Returns stem [B,H/4,W/4,width], res2..res5 (strides 4, 8, 16, 32; 4, 8, 16, 32 times the width), pooled = projected [B,embed_dim]
        (not normalised), and with `dense` dense [B,H/32,W/32,embed_dim]: the locations in the space of the text embeddings (see
        AttentionPool). Under jit only what is used of them is computed.
        """
        shared: dict[str, Any] = dict(dtype=self.dtype)
        x = image.astype(self.dtype)
        for n, (features, stride) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), 1):
            x = Conv(features, stride=stride, padding=1, use_bias=False, name=f"conv{n}", **shared)(x)
            x = nn.relu(BatchNorm(name=f"bn{n}", **shared)(x, train))
        x = average_pool(x, 2)
        result = {"stem": x}
        for n, blocks in enumerate(self.layers):
            width = self.width * 2**n
            x, _ = Bottleneck(width, 1 if n == 0 else 2, project=True, name=f"layer{n + 1}_0", **shared)(x, train)
            if blocks > 1:
                x, _ = scanned(Bottleneck, blocks - 1, unroll=self.unroll)(width, name=f"layer{n + 1}_rest", **shared)(x, train)
            result[f"res{n + 2}"] = x
        pool = AttentionPool(self.embed_dim, self.heads, self.image_size // self.stride, name="attnpool", **shared)
        pooled, located = pool(x, dense)
        return {**result, "pooled": pooled, "projected": pooled} | ({} if located is None else {"dense": located})

    @property
    def stride(self) -> int:
        """Pixels from one location of `dense` to the next."""
        return 4 * 2 ** (len(self.layers) - 1)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32),)
