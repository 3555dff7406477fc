"""The pre-norm transformer that CLIP's text tower and its ViT share, its blocks scanned."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import ACTIVATIONS, Dense, LayerNorm
from segjax.nets.scan import scanned
from segjax.ops.attention import attention
from segjax.typing import Array


class ResidualBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x); query, key and value are one product.

    Submodules carry OpenAI's names. Linen's scan carries x and stacks the second result: x where `hidden`, else nothing.
    """

    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    causal: bool = False
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, keep_values: Array | None, mask: Array | None, hidden: bool) -> tuple[Array, Array | None]:
        """x [B,N,D]. keep_values: bool, broadcast to [N]: tokens that take their own value instead of attending. mask: see `attention`."""
        b, n, width = x.shape
        norm = lambda name: LayerNorm(self.epsilon, dtype=self.dtype, name=name)
        dense = lambda features, name: Dense(features, dtype=self.dtype, name=name)
        joined = dense(3 * width, "in_proj")(norm("ln_1")(x)).reshape(b, n, 3, self.heads, width // self.heads)
        query, key, value = joined[:, :, 0], joined[:, :, 1], joined[:, :, 2]
        mixed = attention(query, key, value, mask=mask, causal=self.causal)
        if keep_values is not None:
            mixed = jnp.where(keep_values[:, None, None], value, mixed)
        x = x + dense(width, "out_proj")(mixed.reshape(b, n, width))
        y = ACTIVATIONS[self.activation](dense(self.mlp_width, "c_fc")(norm("ln_2")(x)))
        x = x + dense(width, "c_proj")(y)
        return x, x if hidden else None


def residual_blocks(
    x: Array, layers: int, unroll: int, *, last_keeps_values: bool, mask: Array | None, hidden: bool, **block
) -> tuple[Array, Any]:
    """`layers` scanned ResidualBlocks, named `resblocks`, over x [B,N,D] inside a compact module: (x, every block's output [layers,B,N,D]).

    last_keeps_values: in the last block every token but the first takes its own value instead of attending (MaskCLIP, arXiv 2112.01071).
    hidden: whether to keep every block's output, else None. block: the fields of ResidualBlock.
    """
    keep = None
    if last_keeps_values:
        keep = (jnp.arange(layers) == layers - 1)[:, None] & (jnp.arange(x.shape[1]) > 0)[None]
    in_axes = (0 if last_keeps_values else nn.broadcast, nn.broadcast, nn.broadcast)
    return scanned(ResidualBlock, layers, in_axes=in_axes, unroll=unroll)(**block, name="resblocks")(x, keep, mask, hidden)
