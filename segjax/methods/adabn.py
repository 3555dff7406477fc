"""AdaBN: the target's BatchNorm statistics, no weight changed (Li et al., arXiv 1603.04779): the baseline to beat."""

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import predictor, target_image, train_forward
from segjax.nets.layers import BN_MOMENTUM
from segjax.runtime.state import TrainState
from segjax.typing import Batch, Frozen, Key, Method, Metrics


def make(*, model, optimizer: optax.GradientTransformation | None = None) -> Method:
    """Each step reads one target batch; after n steps the statistics are the mean of the n batches' (mean, unbiased variance).

    One pass over the target set makes the paper's estimate up to the variance between batch means. Dropout is off. BatchNorm of the
    source is replaced whole; start from a trained network (`start_from`, `weights`). `optimizer` is accepted, as every method's is,
    and unused.
    """
    nothing = optax.identity()
    del optimizer

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, target_image(batch), train=False)
        if not variables.get("batch_stats"):
            raise ConfigError(f"adabn moves BatchNorm statistics and {type(model).__name__} has none: choose a network with BatchNorm")
        return TrainState.create(key, variables, nothing)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        image = target_image(batch)
        empty = jax.tree.map(jnp.zeros_like, state.batch_stats)  # from zero, one update leaves BN_MOMENTUM times the batch's own statistics
        _, update = train_forward(model, state.params, empty, image, None)
        share = 1.0 / (state.step + 1)
        moved = jax.tree.map(lambda old, new: old + share * (new / BN_MOMENTUM - old), state.batch_stats, update)
        change = optax.global_norm(jax.tree.map(jnp.subtract, moved, state.batch_stats))
        return state.replace(step=state.step + 1, batch_stats=moved), {"statistics/change": change}

    return Method(init, step, predictor(model))
