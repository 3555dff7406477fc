"""TinyViT (Wu et al. 2022) as MobileSAM's image encoder: a stage of convolutions, then three of windowed attention, blocks scanned.

`dtype` is that of the 1x1 and dense convolutions, the MLPs and the neck. Sums, norms, the (cheap) depthwise kernels and the attention with
its projections are float32 always: on the golden network single features are then off by up to 2.2 % of the largest in bfloat16, by 3.6 %
with the attention in it too, by 5 % with all.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.nets.layers import BatchNorm, Conv, Dense, DepthwiseConv, LayerNorm, gelu
from segjax.nets.sam_encoder import Neck, in_windows
from segjax.nets.scan import scanned
from segjax.ops.attention_with_bias import attention_with_bias
from segjax.typing import Array


class ConvBN(nn.Module):
    """Convolution without bias and BatchNorm; depthwise keeps the channels, whatever `features`. Returns float32."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        shared: dict[str, Any] = dict(stride=self.stride, padding=self.kernel_size // 2, use_bias=False, name="c")
        if self.depthwise:
            x = DepthwiseConv(self.kernel_size, **shared)(x)
        else:
            x = Conv(self.features, (self.kernel_size, self.kernel_size), dtype=self.dtype, **shared)(x)
        return BatchNorm(name="bn")(x, train)


class MBConv(nn.Module):
    """1x1 to four times the channels, depthwise 3x3, 1x1 back, added to the input; GELU after each and after the sum."""

    expand: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        c = x.shape[-1]
        y = gelu(ConvBN(self.expand * c, dtype=self.dtype, name="conv1")(x, train))
        y = gelu(ConvBN(self.expand * c, 3, depthwise=True, dtype=self.dtype, name="conv2")(y, train))
        return gelu(x + ConvBN(c, dtype=self.dtype, name="conv3")(y, train)), None


class PatchMerging(nn.Module):
    """1x1 to `features`, depthwise 3x3 with the stride, 1x1; GELU between."""

    features: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = gelu(ConvBN(self.features, dtype=self.dtype, name="conv1")(x, train))
        x = gelu(ConvBN(self.features, 3, self.stride, True, self.dtype, name="conv2")(x, train))
        return ConvBN(self.features, dtype=self.dtype, name="conv3")(x, train)


def offset_index(window: int) -> np.ndarray:
    """Index |dy| * window + |dx| of every pair of a window's tokens, [window^2, window^2]: their place in `attention_biases`."""
    y, x = (axis.ravel() for axis in np.mgrid[:window, :window])
    return np.abs(y[:, None] - y[None]) * window + np.abs(x[:, None] - x[None])


class WindowAttention(nn.Module):
    """LayerNorm and self-attention in windows of [B,H,W,C], with a learned bias for every |dy|, |dx|; q, k, v are packed head by head.

    Where a window reaches beyond the image its tokens are zeros before the norm, and take part: what they come to is computed once.
    """

    num_heads: int
    window: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        tokens, c = self.window**2, x.shape[-1]
        norm, project = LayerNorm(1e-5, name="norm"), Dense(3 * c, name="qkv")
        biases = self.param("attention_biases", nn.initializers.zeros, (self.num_heads, tokens))

        def attend(qkv: Array) -> Array:
            qkv = qkv.reshape(-1, tokens, self.num_heads, 3, c // self.num_heads)
            query, key, value = (qkv[:, :, :, i] for i in range(3))
            return attention_with_bias(query, key, value, biases[:, offset_index(self.window)])

        outside = project(norm(jnp.zeros((c,), x.dtype)))
        return Dense(c, name="proj")(in_windows(attend, project(norm(x)), self.window, outside))


class MLP(nn.Module):
    """LayerNorm, four times the channels, GELU, back."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = LayerNorm(1e-5, name="norm")(x)
        y = gelu(Dense(4 * x.shape[-1], dtype=self.dtype, name="fc1")(y))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class Block(nn.Module):
    """Windowed attention (residual), a depthwise 3x3 (none), an MLP (residual)."""

    num_heads: int
    window: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, None]:
        x = x + WindowAttention(self.num_heads, self.window, name="attn")(x)
        x = ConvBN(x.shape[-1], 3, depthwise=True, dtype=self.dtype, name="local_conv")(x, train)
        return x + MLP(self.dtype, name="mlp")(x), None


class TinyViT(nn.Module):
    """Normalised images [B,H,W,3] -> features [B,H/16,W/16,out_channels] (stride 4, then `strides`).

    Any size: nothing here depends on it. Stage n is `layers_n` with its scanned `blocks` and the `downsample` behind it. window_sizes and
    num_heads have an entry for the first stage, which has no attention, as the public code has.
    Source: ChaoningZhang/MobileSAM mobile_sam/modeling/tiny_vit_sam.py, without its unused classifier.
    """

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)
    out_channels: int = 256
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        first = self.embed_dims[0]
        x = gelu(ConvBN(first // 2, 3, 2, dtype=self.dtype, name="patch_embed_0")(x, train))
        x = ConvBN(first, 3, 2, dtype=self.dtype, name="patch_embed_2")(x, train)
        for n, (depth, heads, window) in enumerate(zip(self.depths, self.num_heads, self.window_sizes, strict=True)):
            stage = _Stage(n > 0, depth, heads, window, self._merging(n), self.unroll, self.dtype, name=f"layers_{n}")
            x = stage(x, train)
        return Neck(self.out_channels, self.dtype, name="neck")(x)

    def _merging(self, stage: int) -> tuple[int, int] | None:
        """(channels, stride) of the down-sampling behind a stage."""
        return (self.embed_dims[stage + 1], self.strides[stage]) if stage < len(self.strides) else None


class _Stage(nn.Module):
    """The blocks of a stage and what leads to the next one."""

    attends: bool
    depth: int
    num_heads: int
    window: int
    merging: tuple[int, int] | None
    unroll: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.attends:
            blocks = scanned(Block, self.depth, unroll=self.unroll)(self.num_heads, self.window, self.dtype, name="blocks")
        else:
            blocks = scanned(MBConv, self.depth, unroll=self.unroll)(dtype=self.dtype, name="blocks")
        x, _ = blocks(x, train)
        return x if self.merging is None else PatchMerging(*self.merging, self.dtype, name="downsample")(x, train)
