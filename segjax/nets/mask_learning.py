"""What methods that train a mask-classification network (`nets.mask2former`) share: its features, its answers, its losses.

A frozen backbone runs once, before the gradient: what the losses are computed from is then its maps, else the images.
"""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops.mask_losses import POINTS, WEIGHTS, Ignored, Targets, Weights, mask_losses
from segjax.typing import Array, Key, Terms

BACKBONE = "backbone"
"""The part of the variables that is fixed where the network says `frozen`."""
NO_HEAD = (BACKBONE, "words", "clip_logit_scale", "void_embedding")
"""The parts that are no head: what a network that reads words has beside it is shared by student and teacher, as released."""


def fixed(model: Any) -> tuple[str, ...]:
    """The parts of the network that never learn. ConfigError: another kind of network."""
    if not all(hasattr(model, name) for name in ("features", "predictions", "answer", "frozen")):
        name = type(model).__name__
        raise ConfigError(f"the method learns masks, and model.make is a {name}: expected segjax.nets.mask2former:mask2former")
    return (BACKBONE,) if model.frozen else ()


def features(
    model: Any, variables: dict[str, Any], image: Array, key: Key | None = None, *, train: bool = False
) -> tuple[list[Array], Any]:
    """The backbone's maps of a float image, and the new statistics; train: of the batch, with dropout and stochastic depth by `key`."""
    if not train or model.frozen:
        return model.apply(variables, image, method="features"), variables["batch_stats"]
    rngs = {} if key is None else {"dropout": key}
    maps, changed = model.apply(variables, image, True, method="features", mutable=["batch_stats"], rngs=rngs)
    return maps, {**variables["batch_stats"], **changed.get("batch_stats", {})}


def as_inputs(maps: list[Array]) -> dict[str, Array]:
    """Maps as a flat dict, for `learned_terms`."""
    return {f"map_{n}": x for n, x in enumerate(maps)}


def learned_terms(
    model: Any, params: Any, batch_stats: Any, part: dict[str, Array], key: Key, *, train: bool = False, **options: Any
) -> tuple[Terms, Any]:
    """The losses of a part of the batch, and the new statistics.

    part: "masks" bool [B,H,W,K] and "classes" int32 [B,K] of `ops.mask_losses.Targets`, and the maps (`as_inputs`) or a float "image".
    options: of `set_losses`.
    """
    point_key, dropout_key = jax.random.split(key)
    variables = {"params": params, "batch_stats": batch_stats}
    if "image" in part:
        maps, batch_stats = features(model, variables, part["image"], dropout_key, train=train)
    else:
        maps = [part[f"map_{n}"] for n in range(4)]
    found = model.apply(variables, maps, method="predictions")
    return set_losses(found, Targets(part["masks"], part["classes"]), point_key, **options), batch_stats


def set_losses(
    found: dict[str, Any], targets: Targets, key: Key, *, weights: Weights = WEIGHTS, points: int = POINTS, ignored: Ignored = "negative"
) -> Terms:
    """`ops.mask_losses` over every prediction set of a network's predictions: before the first decoder layer, after each, the last."""
    several = lambda name: jnp.concatenate([found["aux"][name], found[name][None]])
    return mask_losses(several("class_logits"), several("mask_logits"), targets, key, weights=weights, points=points, ignored=ignored)


def labels(model: Any, variables: dict[str, Any], maps: list[Array], size: tuple[int, int]) -> Array:
    """The class of most evidence at each pixel, uint8 [B,*size]: no threshold, no void. No gradient."""
    scores = model.apply(variables, maps, size, method="answer")["logits"]
    return jax.lax.stop_gradient(jnp.argmax(scores, -1).astype(jnp.uint8))
