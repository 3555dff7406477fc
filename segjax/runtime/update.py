"""The end of every training step: optimizer, EMA teacher, step counter."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.runtime.optim import accumulated_grad, ema_update
from segjax.runtime.state import TrainState, without
from segjax.typing import Array, Key, Metrics, Terms

S = TypeVar("S", bound=TrainState)


def apply_gradients(state: S, gradients: Any, optimizer: optax.GradientTransformation, batch_stats: Any, ema_decay: float = 0.0) -> S:
    """State after one optimizer step, with the student's new statistics and, when it has one, the teacher moved towards it.

    The teacher's decay is min(1 - 1/(step + 1), ema_decay), so it starts as a copy of the student (Tarvainen and Valpola 2017, as
    every UDA code has it). Its BatchNorm statistics follow by the same rule; the released UDA codes leave them to the teacher's
    own train-mode passes.
    """
    if not 0 <= ema_decay <= 1:
        raise ConfigError(f"method.ema_decay={ema_decay}: expected 0 (no average) to 1")
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    teacher = {}
    if state.ema_params is not None:
        teacher = {
            "ema_params": ema_update(state.ema_params, params, state.step, ema_decay),
            "ema_batch_stats": ema_update(state.ema_batch_stats, batch_stats, state.step, ema_decay),
        }
    return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, **teacher)


def descend(
    state: S,
    terms: Callable[[Any, dict[str, Array], Any, Key], tuple[Terms, Any]],
    inputs: dict[str, Array],
    optimizer: optax.GradientTransformation,
    *,
    key: Key,
    ema_decay: float = 0.0,
    accumulate: int = 1,
    fixed: Collection[str] = (),
) -> tuple[S, Metrics]:
    """One step down the gradient of a loss: the new state, and each term's contribution to the loss with "gradient_norm".

    terms: (params, inputs, batch_stats, key) -> ({"loss/...": (sum, weight)}, batch_stats). With `accumulate` > 1 it sees that many
    equal parts of the inputs one after the other, each with a key of its own, for the memory of one; the loss is still that of the
    whole batch (`optim.accumulated_grad` says what BatchNorm makes of it). fixed: parts of the network that do not learn, as in
    `TrainState.create`; `terms` does not see them.
    """
    learns = without(state.params, fixed)
    found, metrics, batch_stats = gradients(terms, learns, inputs, carry=state.batch_stats, key=key, accumulate=accumulate)
    moved = apply_gradients(state.replace(params=learns), found, optimizer, batch_stats, ema_decay)
    return moved.replace(params={**state.params, **moved.params}), metrics


def gradients(
    terms: Callable[[Any, dict[str, Array], Any, Key], tuple[Terms, Any]],
    params: Any,
    inputs: dict[str, Array],
    *,
    carry: Any,
    key: Key,
    accumulate: int = 1,
) -> tuple[Any, Metrics, Any]:
    """The first half of `descend`, for methods that carry more than statistics: (gradients, metrics, what `terms` made of `carry`)."""

    def part_terms(params, part, carry):
        part = dict(part)
        rows = part.pop("rows")
        return terms(params, part, carry, key if accumulate == 1 else jax.random.fold_in(key, rows[0]))

    rows = jnp.arange(next(iter(inputs.values())).shape[0])
    found, means, carry = accumulated_grad(part_terms, params, {**inputs, "rows": rows}, accumulate, carry=carry)
    return found, {**means, "gradient_norm": jnp.asarray(optax.global_norm(found), jnp.float32)}, carry
