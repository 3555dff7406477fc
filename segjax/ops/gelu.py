"""The exact GELU, whose gradient keeps its argument alone: autodiff would keep three arrays, and a scanned network stacks them up."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.typing import Array


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x) = x (1 + erf(x / sqrt 2)) / 2, torch's form, in float32 at least; off by 1e-6 at most for |x| < 12.

    `jax.nn.gelu` goes through erfc, which on CPU takes three times as long (18 ms against 7 for 16.8 million numbers).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (0.5 * wide * (1 + lax.erf(wide * np.sqrt(0.5).astype(wide.dtype)))).astype(x.dtype)


def _backward(x, dy):
    """Phi(x) + x * phi(x), in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    slope = 0.5 * lax.erfc(-wide * np.sqrt(0.5).astype(wide.dtype)) + wide * jnp.exp(-0.5 * wide * wide) * (2 * np.pi) ** -0.5
    return ((dy.astype(wide.dtype) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _backward)
