"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) as timm writes it: a trunk for any use, and the vision tower of open_clip's ConvNeXts."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.nets.layers import Conv, Dense, DepthwiseConv, DropPath, LayerNorm, gelu
from segjax.nets.scan import scanned
from segjax.ops.open_vocabulary import pool_by_masks
from segjax.typing import Array


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP of four times the width with exact GELU, layer scale, residual."""

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, drop_rate: Array, train: bool) -> tuple[Array, None]:
        width = x.shape[-1]
        y = LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(DepthwiseConv(7, dtype=self.dtype, name="conv_dw")(x))
        y = gelu(Dense(4 * width, dtype=self.dtype, name="fc1")(y))
        y = Dense(width, dtype=self.dtype, name="fc2")(y)
        y = y * self.param("gamma", nn.initializers.constant(1e-6), (width,)).astype(self.dtype)
        return x + DropPath(name="drop_path")(y, drop_rate, train), None


class ConvNeXt(nn.Module):
    """Trunk over normalised images [B,H,W,3]: {stem, res2, res3, res4, res5}, at strides 4, 4, 8, 16 and 32.

    Submodules carry timm's names; the blocks of a stage are scanned. drop_path: rate of the last block, growing linearly from 0 at the
    first, in training with a "dropout" key alone.
    """

    depths: tuple[int, ...] = (3, 3, 27, 3)
    dims: tuple[int, ...] = (192, 384, 768, 1536)
    drop_path: float = 0.0
    epsilon: float = 1e-6
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> dict[str, Array]:
        shared: dict[str, Any] = dict(dtype=self.dtype)
        x = Conv(self.dims[0], (4, 4), 4, padding=0, name="stem_0", **shared)(image)
        x = LayerNorm(self.epsilon, name="stem_1", **shared)(x)
        result = {"stem": x}
        rates = np.linspace(0, self.drop_path, sum(self.depths), dtype=np.float32)
        for n, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True)):
            if n > 0:
                x = LayerNorm(self.epsilon, name=f"stages_{n}_downsample_0", **shared)(x)
                x = Conv(width, (2, 2), 2, padding=0, name=f"stages_{n}_downsample_1", **shared)(x)
            blocks = scanned(Block, depth, in_axes=(0, nn.broadcast), unroll=self.unroll)
            first = sum(self.depths[:n])
            x, _ = blocks(self.epsilon, name=f"stages_{n}_blocks", **shared)(x, jnp.asarray(rates[first : first + depth]), train)
            result[f"res{n + 2}"] = x
        return result


def masked_head(tower: "ConvNeXtTower", params: Any, top: Array, mask_logits: Array) -> Array:
    """What the tower's norm and head say of the mean of its last map [B,h,w,C] inside of each mask [B,h,w,Q]: float32 [B,Q,embed_dim]."""
    shared: dict[str, Any] = dict(dtype=tower.dtype, parent=None)
    part: Any = lambda module, name, x: module.apply({"params": params[name]}, x)
    x = part(LayerNorm(tower.epsilon, **shared), "head_norm", pool_by_masks(top, mask_logits).astype(tower.dtype))
    if tower.head == "mlp":
        x = gelu(part(Dense(tower.head_width, **shared), "head_fc1", x))
    last = Dense(tower.embed_dim, use_bias=False, **shared)
    return part(last, "head_fc2" if tower.head == "mlp" else "head_proj", x).astype(jnp.float32)


class ConvNeXtTower(nn.Module):
    """A ConvNeXt trunk with open_clip's head, over normalised images [B,H,W,3].

    head: "mlp" (fc1, exact GELU, fc2: the `_d` models) or "linear" (one projection), neither with a bias on its last product.
    """

    embed_dim: int
    image_size: int = 256
    depths: tuple[int, ...] = (3, 3, 27, 3)
    dims: tuple[int, ...] = (192, 384, 768, 1536)
    head: str = "mlp"
    head_width: int = 1536
    drop_path: float = 0.0
    epsilon: float = 1e-6
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False, dense: bool = False) -> dict[str, Array]:
        """Returns the trunk's maps, pooled [B,dims[-1]] (normalised mean over space), projected [B,embed_dim] (not normalised), and
        with `dense` dense [B,H/32,W/32,embed_dim]: norm and head at every location, in the space of the text embeddings.
        Under jit only what is used of them is computed.
        """
        shared: dict[str, Any] = dict(dtype=self.dtype)
        trunk = ConvNeXt(self.depths, self.dims, self.drop_path, self.epsilon, self.unroll, name="trunk", **shared)
        features = trunk(image, train)
        norm = LayerNorm(self.epsilon, name="head_norm", **shared)
        last = Dense(self.embed_dim, use_bias=False, name="head_fc2" if self.head == "mlp" else "head_proj", **shared)
        first = Dense(self.head_width, name="head_fc1", **shared) if self.head == "mlp" else None
        head = lambda x: last(x if first is None else gelu(first(x)))
        top = features[f"res{len(self.dims) + 1}"]
        pooled = norm(top.mean((1, 2), dtype=jnp.float32).astype(self.dtype))
        result = {**features, "pooled": pooled, "projected": head(pooled)}
        return {**result, "dense": head(norm(top))} if dense else result

    @property
    def stride(self) -> int:
        """Pixels from one location of `dense` to the next."""
        return 4 * 2 ** (len(self.dims) - 1)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32),)
