"""Fresh variables of a network, traced once: its shapes, the parts that a file lacks and the first state of CLOUDS' stages (the other
methods draw theirs at a batch's own size) come from that trace."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from segjax.typing import Key

_PROBE = (1, 64, 64, 3)  # of an image: parameters do not depend on it


@functools.partial(jax.jit, static_argnums=0)
def initial(model: Any, key: Key) -> dict[str, Any]:
    """{"params": ..., "batch_stats": ... where it has them} drawn with the key.

    A network that takes anything but one image [B,H,W,3] has a method `example()` that gives its arguments as ShapeDtypeStructs.
    """
    if hasattr(model, "example"):
        return model.init(key, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example()))
    return model.init(key, jnp.zeros(_PROBE), train=False)


def shapes(model: Any) -> dict[str, Any]:
    """`initial` as ShapeDtypeStructs; nothing is computed."""
    return jax.eval_shape(functools.partial(initial, model), jax.random.key(0))
