"""A network's forward pass, or forward and backward, as a workload: random weights or the peer's, random inputs. Makes none by itself."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.verbs.workloads import Arrays, Workload, training
from segjax.weights import safetensors_io, walk

TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
"""Of the largest output. A GPU multiplies float32 by TensorFloat-32 on both sides, where 2e-2 are allowed."""


def workload(
    answer: Callable[..., Any],
    shapes: Mapping[str, Any],
    inputs: Mapping[str, tuple[int, ...]],
    *,
    layout: Callable[[Arrays], Any],
    rows: int,
    sizes: Mapping[str, Any],
    dtype: str,
    peer: str,
    at: tuple[str, ...] = (),
) -> Workload:
    """answer: (dtype of the products, variables, inputs) -> array, or arrays by name. shapes: of the variables. inputs: shape of each,
    drawn from a normal distribution. layout: the table of the public names that the peer's weights have; at: where the variables lie in
    the network that this table is of. The weights are kept in `dtype`, as one keeps them for inference."""
    like = safetensors_io.flatten(_below(shapes, at))

    def draw(rng: np.random.Generator) -> Arrays:
        return {name: rng.standard_normal(shape, np.float32) for name, shape in inputs.items()}

    def start() -> Any:
        drawn = 0.02 * np.random.default_rng(1).standard_normal(2**20 + 1, np.float32)  # repeated: a UNet has 860 million

        def leaf(path, x):
            some = np.resize(drawn, x.shape)
            return jnp.asarray(1.0 + np.abs(some) if path[-1].key in ("scale", "var") else some, _kept(x.dtype, dtype))

        return jax.tree_util.tree_map_with_path(leaf, dict(shapes))

    def adopt(carry: Any, weights: Arrays) -> Any:
        tree = safetensors_io.unflatten(walk.to_segjax(weights, layout(weights), like, name=peer))
        found = {kind: _within(tree[kind], at) for kind in shapes}
        return jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), found, carry)

    def named(kind: str) -> Callable[[Any, Arrays], dict[str, Any]]:
        def run(carry, given):
            found = answer(jnp.dtype(kind), carry, given)
            return found if isinstance(found, dict) else {"out": found}

        return run

    plain = jax.jit(named("float32"), compiler_options=training.unoptimised())
    loose = dtype == "float32" and jax.default_backend() != "cpu"
    return Workload(
        step=lambda carry, given: (carry, named(dtype)(carry, given)),
        draw=draw,
        reference=plain,
        tolerance=2e-2 if loose else TOLERANCE[dtype],
        rows=rows,
        sizes={**sizes, "dtype": dtype},
        start=start,
        dtype=dtype,
        peer=peer,
        adopt=adopt,
    )


def gradients(loss: Callable[[Any, jax.Array], jax.Array], variables: Any, x: jax.Array) -> dict[str, jax.Array]:
    """The gradient of x over its largest, and the norm n of all parameters' gradients as n / (1 + n), so that none of them is left out."""
    ours, dx = jax.grad(loss, argnums=(0, 1))(variables, x)
    norm = jnp.sqrt(sum((jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(ours)), jnp.zeros(())))
    return {"dx": dx / jnp.abs(dx).max(), "norm": norm / (1 + norm)}


def _kept(own: Any, dtype: str) -> Any:
    return dtype if jnp.issubdtype(own, jnp.floating) else own


def _below(tree: Mapping[str, Any], at: tuple[str, ...]) -> dict[str, Any]:
    """Each collection of the tree, moved below the path `at`."""
    for name in reversed(at):
        tree = {kind: {name: part} for kind, part in tree.items()}
    return dict(tree)


def _within(tree: Any, at: tuple[str, ...]) -> Any:
    for name in at:
        tree = tree[name]
    return tree
