"""Labels that a network gives to images that have none."""

import jax
import jax.numpy as jnp

from segjax.typing import IGNORE, Array


def confident_labels(logits: Array, threshold: float) -> Array:
    """argmax of each pixel where its probability is at least `threshold`, 255 elsewhere. [B,H,W,K] -> uint8 [B,H,W], no gradient."""
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits).astype(jnp.float32), axis=-1)
    return jnp.where(probs.max(-1) >= threshold, probs.argmax(-1), IGNORE).astype(jnp.uint8)
