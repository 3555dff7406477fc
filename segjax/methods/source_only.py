"""Supervised training on the source alone: the baseline that every adaptation must beat."""

import functools

import jax
import optax

from segjax.nets.apply import predictor, to_float, train_forward
from segjax.ops.photometric import color_jitter
from segjax.ops.supervised import supervised_terms
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    jitter: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """Cross-entropy on source images.

    aux_weight: weight of the auxiliary head's cross-entropy, where the network has one. class_weights: one a class; the loss is
    then the weighted mean. jitter: strength of the photometric jitter (brightness, contrast and saturation +-jitter, hue
    +-jitter/4, every image), 0 for none. ema_decay: > 0 predicts with an exponential moving average of the weights. accumulate: parts that
    a batch is worked off in, for the memory of one (`runtime.update.descend`).
    """
    supervised = functools.partial(supervised_terms, align_corners=model.align_corners, aux_weight=aux_weight, class_weights=class_weights)

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=ema_decay > 0)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        jitter_key, dropout_key = jax.random.split(state.step_key())
        image = to_float(batch["source_image"])
        if jitter:
            image = color_jitter(jitter_key, image, brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4)

        def terms(params, part, batch_stats, key):
            outputs, batch_stats = train_forward(model, params, batch_stats, part["image"], key)
            return supervised(outputs, part["label"]), batch_stats

        inputs = {"image": image, "label": batch["source_label"]}
        return descend(state, terms, inputs, optimizer, key=dropout_key, ema_decay=ema_decay, accumulate=accumulate)

    return Method(init, step, predictor(model))
