"""DiGA's warm-up: distil to generalize (Shen et al., CVPR 2023, arXiv 2304.02222; code fy-vision/DiGA).

L = CE(S(v0), y) + lambda * [H(T(v0), S(v1)) + reverse * H(T(v1), S(v0))]

S is the student, T its moving average, v0 a source image, v1 the same image in another look: half of its classes photometrically changed,
the others translated to the target's look (CrossDoMix). H is the cross-entropy of the teacher's distribution and the student's, so each
view teaches the other. No target image is in a loss. With second_view="photometric" none is read at all: domain generalisation.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import predictor, target_image, teacher_forward, to_float, train_forward
from segjax.nets.domain_views import SecondView
from segjax.ops.fourier import Variant
from segjax.ops.supervised import supervised_terms
from segjax.ops.two_views import by_view, distillation_terms, logits_of, one_batch, view
from segjax.runtime.optim import ema_update
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    second_view: str = "crossdomix",
    translator: str = "fda",
    beta: float = 0.01,
    variant: Variant = "centred",
    chain: str = "gta5",
    view_share: float = 0.4,
    distill_weight: float = 0.5,
    reverse_weight: float = 0.5,
    mean_over: Literal["valid", "all"] = "all",
    hard: tuple[float, int] | tuple[()] = (),
    ema_decay: float = 0.999,
    predicts: str = "student",
    faithful_view: bool = False,
    faithful_statistics: bool = False,
    faithful_teacher: bool = False,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    accumulate: int = 1,
) -> Method:
    """Symmetric distillation between two views of source images; both views of an image are one pass of the student and of the teacher.

    second_view, translator, beta, variant: `nets.domain_views.SecondView`; beta is FDA's window. chain, view_share: the photometric chain
    by name ("gta5", "synthia", "generalisation") and its share of the view, the paper's beta (0.4).
    distill_weight: lambda, 0.5 for GTA5, 0.25 for SYNTHIA; 0 leaves supervised training with a teacher. reverse_weight: 0.5 and 0.25; 0 is
    the ablation without the symmetric term, where the clean view alone teaches.
    mean_over: "all" divides the segmentation loss by all pixels, ignored ones too, as the code; "valid" by the labelled ones.
    hard: (0.7, 100_000) for SYNTHIA, the segmentation loss over hard pixels alone (`ops.pixel_losses.hard_pixels`).
    ema_decay: the teacher's. It moves before the student does, as in the code. predicts: "student" (whose weights the paper keeps) or
    "teacher". aux_weight: of a two-level network's second head in both losses. accumulate: `runtime.update.descend`.

    What the released code does and this leaves out, each a switch:
    faithful_view: the photometric chain works on normalised BGR values, which its operations clamp: dark pixels lose contrast and the
        view is stronger at the same view_share (`ops.photometric_views.diga_view`). Off: on the picture.
    faithful_statistics: after each batch the student reads target images in training mode, for pictures. No gradient, but BatchNorm's
        running statistics become half the target's, so a network that "never saw" the target predicts with its statistics (in the domain
        generalisation script too). Needs target images. Off: they are those of the two source views.
    faithful_teacher: the teacher stays in training mode, with the batch's own statistics and with dropout, and its running statistics are
        its own passes'. Its targets are noisier. Off: it predicts as in evaluation, with moving averages of the student's statistics.

    Deliberate differences: no checkpoint is chosen by target labels; the classes of a mask are drawn for each image from (seed, step).
    """
    if predicts not in ("student", "teacher"):
        raise ConfigError(f"method.predicts={predicts!r}: expected 'student' or 'teacher'")
    if hard and len(hard) != 2:
        raise ConfigError(f"method.hard={hard!r}: expected () or (threshold, pixels kept at least), e.g. (0.7, 100_000)")
    dtype = getattr(model, "dtype", jnp.float32)
    other_view = SecondView(model.num_classes, second_view, translator, beta, variant, view_share, chain, faithful_view, dtype)
    heads: dict[str, Any] = dict(align_corners=model.align_corners, aux_weight=aux_weight)
    ce: dict[str, Any] = dict(**heads, mean_over=mean_over, hard=hard or None, class_weights=class_weights)

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=True, predicts=predicts)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        view_key, teacher_key, dropout_key = jax.random.split(state.step_key(), 3)
        target = target_image(batch) if other_view.uses_target or faithful_statistics else None
        source, label = to_float(batch["source_image"]), batch["source_label"]
        size = label.shape[1], label.shape[2]
        views = jnp.stack([source, other_view(view_key, source, label, target, frozen)], 1)

        teacher = ema_update(state.ema_params, state.params, state.step, ema_decay)
        statistics = state.ema_batch_stats
        if not faithful_teacher:
            statistics = ema_update(statistics, state.batch_stats, state.step, ema_decay)
        taught, statistics = teacher_forward(model, teacher, statistics, one_batch(views), teacher_key, train=faithful_teacher)
        inputs = {"views": views, "label": label, **by_view(logits_of(taught), 2)}
        if faithful_statistics and target is not None:
            inputs["target"] = target

        def terms(params, part, batch_stats, key):
            student_key, target_key = jax.random.split(key)
            outputs, batch_stats = train_forward(model, params, batch_stats, one_batch(part["views"]), student_key)
            outputs = by_view(logits_of(outputs), 2)
            found = supervised_terms(view(outputs, 0), part["label"], **ce)
            if distill_weight:
                found |= distillation_terms(outputs, part, size, **heads, reverse_weight=reverse_weight, weight=distill_weight)
            if faithful_statistics:
                _, batch_stats = train_forward(model, params, batch_stats, part["target"], target_key)
            return found, batch_stats

        learning = state.replace(ema_params=None, ema_batch_stats=None)
        learned, metrics = descend(learning, terms, inputs, optimizer, key=dropout_key, accumulate=accumulate)
        return learned.replace(ema_params=teacher, ema_batch_stats=statistics), metrics

    return Method(init, step, predictor(model))
