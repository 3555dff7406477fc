"""The projection head of contrastive learning: two dense layers that are thrown away after training."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.nets.layers import Dense
from segjax.typing import Array

TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Projection(nn.Module):
    """[...,C] -> [...,dims]: C -> C, ReLU, C -> dims (SupCon, Khosla et al. 2020; HobbitLong/SupContrast networks/resnet_big.py)."""

    dims: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.relu(Dense(x.shape[-1], kernel_init=TORCH_LINEAR, dtype=self.dtype, name="hidden")(x))
        return Dense(self.dims, kernel_init=TORCH_LINEAR, dtype=self.dtype, name="output")(hidden)
