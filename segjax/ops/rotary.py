"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), plain or stretched to contexts longer than those of the training.

The stretchings are those of transformers' modeling_rope_utils.py, by its names and keys. Angles are float32.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from segjax.typing import Array

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def rotary_table(
    positions: Array, length: Array, dims: int, theta: float, kind: str, settings: Mapping[str, float], context: int
) -> tuple[Array, Array]:
    """(cos, sin), float32 [B,N,dims / 2], for the tokens at positions int [B,N].

    length: int [B], each row's tokens so far, which "dynamic" alone looks at. dims: of a head. kind: one of `KINDS`; settings: its numbers
    (`factor`, ...). context: of the training. Difference for "dynamic": a row goes by its own length, not the batch's longest, so that no
    text depends on its neighbours. ValueError: an unknown kind.
    """
    frequencies = jnp.asarray(_frequencies(dims, theta, kind, settings), jnp.float32)
    if kind == "dynamic":
        factor = settings["factor"]
        ratio = factor * jnp.maximum(length, context) / context - (factor - 1)
        exponent = -np.arange(0, dims, 2, dtype=np.float32) / (dims - 2)  # theta * ratio ** (dims / (dims - 2)), to the -2i / dims
        frequencies = (frequencies * ratio.astype(jnp.float32)[:, None] ** exponent)[:, None]
    angle = positions.astype(jnp.float32)[..., None] * frequencies
    gain = _yarn_gain(settings) if kind == "yarn" else 1.0
    return jnp.cos(angle) * gain, jnp.sin(angle) * gain


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x [B,N,H,D] turned by the table's angles, in float32; number d of a head pairs with number d + D / 2 (Hugging Face's order)."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def _frequencies(dims: int, theta: float, kind: str, settings: Mapping[str, float]) -> np.ndarray:
    """Radians a token of each pair, float64 [dims / 2]; "dynamic" starts from the plain ones."""
    if kind not in KINDS:
        raise ValueError(f"rotary embedding {kind!r}: expected {', '.join(KINDS)}")
    plain = theta ** -(np.arange(0, dims, 2) / dims)
    if kind == "linear":
        return plain / settings["factor"]
    if kind == "llama3":
        return _llama3(plain, settings)
    if kind == "yarn":
        return _yarn(plain, dims, theta, settings)
    return plain


def _llama3(plain: np.ndarray, settings: Mapping[str, float]) -> np.ndarray:
    """Wave lengths beyond original / low are stretched by `factor`, those below original / high left, those between blended."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * plain / (2 * math.pi)  # within the original context
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / settings["factor"])


def _yarn(plain: np.ndarray, dims: int, theta: float, settings: Mapping[str, float]) -> np.ndarray:
    """Peng et al. 2023 (arXiv 2309.00071): a ramp over the pairs between `beta_fast` and `beta_slow` turns within the original context."""

    def pair(turns: float) -> float:
        original = settings["original_max_position_embeddings"]
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(settings.get("beta_fast", 32)), pair(settings.get("beta_slow", 1))
    if settings.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    stretched = np.clip((np.arange(dims // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return plain * (1 - stretched + stretched / settings["factor"])


def _yarn_gain(settings: Mapping[str, float]) -> float:
    """What the table is multiplied by, a temperature of the attention."""
    if "attention_factor" in settings:
        return settings["attention_factor"]

    def gain(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1 if settings["factor"] > 1 else 1.0

    if settings.get("mscale") and settings.get("mscale_all_dim"):
        return gain(settings["mscale"]) / gain(settings["mscale_all_dim"])
    return gain(1.0)
