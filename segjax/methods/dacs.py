"""DACS: domain adaptation via cross-domain mixed sampling (Tranheden et al., WACV 2021, arXiv 2007.08702; code vikolss/DACS).

L = CE(phi(x_s), y_s) + lambda * w CE(phi(x_m), y_m)

x_m is a target image onto which half of a source image's classes are pasted, photometrically changed; y_m is the truth there and the
teacher's label elsewhere. The teacher is the moving average of phi; w is the share of the batch's target pixels that it is sure of, and 1
on the source's.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.nets.apply import pair_images, predictor, to_float, train_forward
from segjax.nets.self_training import check_choices, lesson_terms, photometric, taught
from segjax.ops.fourier import Variant
from segjax.ops.mixtures import Labelled, class_mix, packed
from segjax.ops.photometric_views import strong_view
from segjax.ops.stylize import in_the_look_of
from segjax.runtime.optim import ema_update
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.99,
    threshold: float = 0.968,
    mix_weight: float = 1.0,
    pool: Literal["image", "batch"] = "image",
    ignored: Literal["value", "never"] = "value",
    jitter: float = 0.25,
    jitter_probability: float = 0.8,
    blur_probability: float = 0.5,
    source_jitter: bool = False,
    mean_over: Literal["valid", "all"] = "all",
    teacher: Literal["batch", "running"] = "batch",
    normalise: Literal["apart", "together"] = "apart",
    statistics: Literal["joint", "target"] = "joint",
    predicts: str = "student",
    betas: tuple[float, ...] = (),
    variant: Variant = "centred",
    stylized_share: float = 1.0,
    aux_weight: float = 0.1,
    detail_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    accumulate: int = 1,
) -> Method:
    """One step reads as many target images as source images. Source and mixture pass through the student as one batch.

    ema_decay: the teacher's; it moves before the student does, and begins as its copy. threshold: of w. mix_weight: lambda.
    jitter: of brightness, contrast, saturation and hue; with the two probabilities, of the mixture (`ops.photometric_views.strong_view`).

    What the released code does, each with the switch that leaves it out:
    ignored="value": 255 is one of the classes that may be pasted; "never".
    mean_over="all": losses are divided by all pixels, ignored ones too (there the mixture's, while the source's is over the labelled
        ones); "valid", by the labelled ones.
    teacher="batch": the teacher stays in training mode without dropout, so BatchNorm normalises by each batch, and the running statistics
        are of its own passes over target images, never averages of the student's; "running": it predicts as in evaluation, with moving
        averages of the student's statistics.
    normalise="apart": BatchNorm takes source and mixture each by itself, as the code's two passes; "together": as one batch.
    predicts="student": whose weights are reported; "teacher".

    Deliberate differences: half the classes of each image are drawn from (seed, step), and of its own values alone (pool="image", as here;
    "batch" is DAFormer's); the last network is kept, not the best by target labels; the teacher's average is taken at the start of the next
    step, as in DAFormer (there at the end of the step); cross-entropy is up-sampled with the network's own corner rule.

    Not in it, off by default: betas, variant, stylized_share: so large a share of source images wears the target's low-frequency amplitudes
    (FDA) before all else; with several betas each image draws one. source_jitter: the source is changed like the mixture.
    statistics="target": BatchNorm's running statistics of the student are those of plain target images, which it reads once more for them.
    """
    check_choices(teacher=teacher, normalise=normalise, statistics=statistics, predicts=predicts, mean_over=mean_over)
    changes, weights = photometric(jitter, jitter_probability, blur_probability), {"source": 1.0, "mix": mix_weight}
    shares: dict[str, Any] = dict(aux_weight=aux_weight, detail_weight=detail_weight, class_weights=class_weights)

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=True, predicts=predicts)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        style_key, source_key, mix_key, dropout_key = jax.random.split(state.step_key(), 4)
        image, target = pair_images(batch)
        image = in_the_look_of(style_key, image, target, betas, variant=variant, share=stylized_share)
        source = Labelled(image, batch["source_label"], jnp.ones(image.shape[:3], jnp.float32))

        seen, mean_teacher = state.ema_batch_stats, ema_update(state.ema_params, state.params, state.step, ema_decay)
        if teacher == "running":
            seen = ema_update(seen, state.batch_stats, state.step, ema_decay)
        pseudo, sure, seen = taught(model, mean_teacher, seen, target, threshold=threshold, train=teacher == "batch")
        mix = class_mix(mix_key, source, pseudo, model.num_classes, pool=pool, ignored=ignored, view=changes)
        if source_jitter:
            source = source._replace(image=strong_view(source_key, image, **changes))
        inputs = packed({"source": source, "mix": mix}) | ({"target": target} if statistics == "target" else {})

        def terms(params, part, batch_stats, key):
            student_key, target_key = jax.random.split(key)
            how: dict[str, Any] = dict(weights=weights, normalise=normalise, mean_over=mean_over, **shares)
            found, _, after = lesson_terms(model, params, batch_stats, part, student_key, **how)
            if statistics == "target":
                _, after = train_forward(model, params, batch_stats, part["target"], target_key)
            return found, after

        learning = state.replace(ema_params=None, ema_batch_stats=None)
        learned, metrics = descend(learning, terms, inputs, optimizer, key=dropout_key, accumulate=accumulate)
        return learned.replace(ema_params=mean_teacher, ema_batch_stats=seen), metrics | {"pseudo/quality": sure}

    return Method(init, step, predictor(model))
