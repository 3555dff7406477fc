"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) beside the attention kernels of a network's parameters.

A kernel W [I,O] becomes W + alpha / rank * down [I,r] up [r,O], with W frozen. A kernel that holds several products side by side (CLIP's
joint query, key and value) has an adapter for each, as public code with separate layers has; scanned layers have theirs stacked.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from segjax.typing import Array, Key

KERNELS: Mapping[str, int] = {
    r"attn\d/(to_[qkv]|to_out_0)/kernel$": 1,
    r"resblocks/in_proj/kernel$": 3,
    r"resblocks/out_proj/kernel$": 1,
}
"""Which kernels get an adapter (the UNet's query, key, value and output projections; CLIP's), and how many products each holds."""


def adapters(key: Key, params: Any, rank: int) -> dict[str, Any]:
    """Fresh adapters of a network's parameters (arrays or ShapeDtypeStructs), nested as those are; float32.

    down [...,products,I,rank] is normal with deviation 1 / rank (diffusers' "gaussian"), up [...,products,rank,O] zero: no change yet.
    """
    found: dict[str, Any] = {}
    for number, (path, products, shape) in enumerate(_kernels(params)):
        *stack, inner, outer = shape
        place = found
        for name in path:
            place = place.setdefault(name, {})
        place["down"] = jax.random.normal(jax.random.fold_in(key, number), (*stack, products, inner, rank)) / rank
        place["up"] = jnp.zeros((*stack, products, rank, outer // products), jnp.float32)
    return found


def merged(params: Any, found: Any, scale: float) -> Any:
    """The parameters with `scale` (alpha / rank) times every adapter added to its kernel: what the adapted network computes with."""
    if not isinstance(params, Mapping):
        return params + scale * _product(found["down"], found["up"])
    return {name: merged(part, found[name], scale) if name in found else part for name, part in params.items()}


def _product(down: Array, up: Array) -> Array:
    """[...,I,products * O], the products side by side."""
    change = jnp.einsum("...pir,...pro->...ipo", down, up, precision="highest")
    return change.reshape(*change.shape[:-2], -1)


def _kernels(params: Any) -> Iterator[tuple[list[str], int, tuple[int, ...]]]:
    """(path, products, shape) of every kernel that gets an adapter, in the order of their paths."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = [str(key.key) for key in keys]
        products = next((count for pattern, count in KERNELS.items() if re.search(pattern, "/".join(path))), 0)
        if products:
            yield path, products, leaf.shape
