"""CLIP's vision transformer of any width, patch and resolution (Radford et al. 2021, arXiv 2103.00020)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Conv, Dense, LayerNorm
from segjax.nets.transformer import residual_blocks
from segjax.ops.bicubic import bicubic
from segjax.typing import Array


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks, over normalised images [B,H,W,3].

    embed_dim: of the projection into the space that texts share; None for a tower without it (no `projected`, no `dense`).
    image_size: of training, which fixes the grid of position embeddings. At any other size the grid is resized bicubically, corners not
    aligned and without antialiasing, as Hugging Face's `interpolate_pos_encoding` (open_clip's loader resizes with antialiasing).
    Pixels beyond the last whole patch are not seen.
    """

    embed_dim: int | None = None
    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False, dense: bool = False, at: tuple[int, ...] = ()) -> dict[str, Array]:
        """Returns, for a grid of h x w patches of D = width channels and E = embed_dim,

        last [B,1+hw,D]: the last block's tokens, the class token first. pooled [B,D]: the class token after the final norm.
        projected [B,E]: not normalised. block{n} [B,h,w,D]: the patches after n blocks, for every n of `at` (0: before the first;
        keeping any keeps all blocks' outputs until the end).
        dense [B,h,w,E], with `dense`: the patches in the space of the text embeddings, not normalised: in the last block every patch takes
        its own value instead of attending, as MaskCLIP (Zhou et al. 2022, arXiv 2112.01071); `last` then holds those patches.
        The class token, `pooled` and `projected` are the same either way.
        """
        b, shape = image.shape[0], (image.shape[1] // self.patch_size, image.shape[2] // self.patch_size)
        norm = lambda name: LayerNorm(self.epsilon, dtype=self.dtype, name=name)
        side, init = self.image_size // self.patch_size, nn.initializers.normal(self.width**-0.5)
        patch = (self.patch_size, self.patch_size)
        x = Conv(self.width, patch, self.patch_size, padding=0, use_bias=False, dtype=self.dtype, name="conv1")(image)
        x = x.reshape(b, -1, self.width)
        first = self.param("class_embedding", init, (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(first.astype(self.dtype), (b, 1, self.width)), x], axis=1)
        positions = self.param("positional_embedding", init, (1 + side * side, self.width))
        start = norm("ln_pre")(x + _resized(positions, side, shape).astype(self.dtype))
        x, outputs = residual_blocks(
            start,
            self.layers,
            self.unroll,
            last_keeps_values=dense,
            mask=None,
            hidden=bool(at),
            heads=self.heads,
            mlp_width=self.mlp_width,
            activation=self.activation,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        normal = norm("ln_post")(x if dense else x[:, :1])
        result = {"last": x, "pooled": normal[:, 0]}
        for n in at:
            result[f"block{n}"] = (start if n == 0 else outputs[n - 1])[:, 1:].reshape(b, *shape, self.width)
        if self.embed_dim is not None:
            projected = Dense(self.embed_dim, use_bias=False, dtype=self.dtype, name="proj")(normal)
            result["projected"] = projected[:, 0]
            if dense:
                result["dense"] = projected[:, 1:].reshape(b, *shape, self.embed_dim)
        return result

    @property
    def stride(self) -> int:
        """Pixels from one location of `dense` to the next."""
        return self.patch_size

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32),)


def _resized(positions: Array, side: int, shape: tuple[int, int]) -> Array:
    """Position embeddings [1 + side^2, D] for a grid of another shape; the class token's stays."""
    if shape == (side, side):
        return positions
    grid = bicubic(positions[1:].reshape(1, side, side, -1), shape)
    return jnp.concatenate([positions[:1], grid.reshape(shape[0] * shape[1], -1)])
