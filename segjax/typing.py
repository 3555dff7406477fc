"""The words that every floor shares: array types and the one interface of a training method."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jax import Array as Array  # re-exported: every floor takes it from here

Key: TypeAlias = Array
Batch: TypeAlias = dict[str, Array]
"""Flat dict of arrays as they came from disk: `source_image` uint8 [B,H,W,3], `source_label` uint8 [B,H,W], `target_image`, optional
`target_label`."""
Metrics: TypeAlias = dict[str, Array]
"""Flat dict `"loss/ce" -> float32 scalar`."""
Terms: TypeAlias = dict[str, tuple[Array, Array]]
"""The parts of a loss, `"loss/ce" -> (sum, weight)`, float32 scalars: the loss adds sum / weight of each, over the whole batch."""
State: TypeAlias = Any
"""A method's own flax.struct dataclass. The loop reads `state.step` alone."""
Frozen: TypeAlias = Any
"""Pytree of weights that never train. Not donated, not checkpointed. `()` when a method has none."""

IGNORE = 255
"""The label of a pixel that no loss and no score counts."""


class Method(NamedTuple):
    """A training method as a tuple of pure functions (the shape that made optax last).

    init: (key, batch) -> state. Jittable; used under `eval_shape` too.
    step: (state, frozen, batch) -> (state, metrics). Jittable; state is donated, frozen is not.
    predict: (state, frozen, image uint8 [B,H,W,3]) -> logits float32 [B,H,W,K] at the image's own size. Jittable.
    """

    init: Callable[[Key, Batch], State]
    step: Callable[[State, Frozen, Batch], tuple[State, Metrics]]
    predict: Callable[[State, Frozen, Array], Array]
