"""DAFormer (Hoyer et al., CVPR 2022, arXiv 2111.14887), HRDA (ECCV 2022, arXiv 2204.13132) and MIC over both (CVPR 2023, arXiv 2212.01322).

L = H(x_s, y_s) + lambda_fd * d(e(x_s), e_ImageNet(x_s)) + H(x_m, y_m; w) [+ lambda_mic * H(M x_t, y_t; w)]
H = CE of the logits; of a network of two resolutions (1 - lambda_d) CE(fused) + lambda_d CE(detail), the second over a window of the crop

x_m and y_m are DACS's mixture (`segjax.methods.dacs`): source classes on a target image under the teacher's labels y_t, w the share of the
batch that the teacher is sure of. d is the distance of the encoder's last features to those that ImageNet left, where the source shows
things. M hides most blocks of a target image (MIC). Rare-class sampling, the third part of the paper, is the data's (`data.sampling`).
HRDA is this training, as in its code, of a network that reads a large crop coarsely and a window of it finely (`segjax.nets.hrda`).
Code: lhoyer/DAFormer, lhoyer/HRDA, lhoyer/MIC.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import pair_images, predictor, to_float, train_forward
from segjax.nets.imagenet_copy import imagenet_features
from segjax.nets.self_training import check_choices, lesson_terms, photometric, taught
from segjax.ops.feature_distance import CITYSCAPES_THINGS, feature_distance
from segjax.ops.fourier import Variant
from segjax.ops.mixtures import Labelled, class_mix, masked, packed
from segjax.ops.pseudo_labels import margin_weight
from segjax.ops.stylize import in_the_look_of
from segjax.ops.two_views import view
from segjax.runtime.optim import ema_update
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import IGNORE, Array, Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    ema_decay: float = 0.999,
    threshold: float = 0.968,
    mix_weight: float = 1.0,
    ignore_top: int = 0,
    ignore_bottom: int = 0,
    margins: bool = False,
    detail_weight: float = 0.1,
    feature_weight: float = 0.005,
    feature_classes: tuple[int, ...] = CITYSCAPES_THINGS,
    feature_min_ratio: float = 0.75,
    mask_weight: float = 0.0,
    mask_block: int = 32,
    mask_ratio: float = 0.7,
    mask_images: str = "target",
    mask_view: bool = True,
    pool: Literal["image", "batch"] = "batch",
    ignored: Literal["value", "never"] = "value",
    jitter: float = 0.2,
    jitter_probability: float = 0.8,
    blur_probability: float = 0.5,
    mean_over: Literal["valid", "all"] = "all",
    teacher: Literal["batch", "running"] = "batch",
    normalise: Literal["apart", "together"] = "apart",
    statistics: Literal["joint", "target"] = "joint",
    predicts: str = "student",
    betas: tuple[float, ...] = (),
    variant: Variant = "centred",
    stylized_share: float = 1.0,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    accumulate: int = 1,
) -> Method:
    """One step reads as many target images as source images. All that the student sees passes through it as one batch.

    ema_decay, threshold, jitter and its probabilities, betas, variant, stylized_share: `segjax.methods.dacs`.
    ignore_top, ignore_bottom: rows of a crop whose pseudo-labels do not count; 15 and 120 for crops of 512 as high as the picture.
    margins: HRDA's crops may lie anywhere in the picture, so the target brings its border along: labels of `segjax.data.margins:Margins`
    (`data.target_labels=True`), 255 where a pseudo-label does not count. Off for ACDC and Dark Zurich.
    detail_weight: lambda_d of a network of two resolutions, ignored by others. Source, mixture and masked images each have a window of
    their own, the teacher and a prediction read nine; a window of the whole crop gives as much to the context's own logits. Features
    are the context's.
    feature_weight: lambda_fd; > 0 needs the stage's frozen={"imagenet": FILE}, the encoder's initial weights. feature_classes: train ids of
    things; feature_min_ratio: their share of a feature's square of the label. With no thing in the batch the term is 0 (there NaN).
    mask_weight: lambda_mic, 1 for MIC, 0 for none; mask_block, mask_ratio: side of the hidden blocks in pixels and their share;
    mask_images, mask_view: `ops.mixtures.masked`, "half" without a view for ACDC and Dark Zurich. Labels and weights are the host's.

    What the released code does, each with the switch that leaves it out:
    pool="batch": a mixture's classes are half of those in the whole batch's labels, so some images give few or none (not intended there,
        and kept); "image", of its own.
    ignored="value": 255 may be one of them; "never". mean_over="all": losses are divided by all pixels, ignored ones too; "valid".
    teacher="batch": BatchNorm of the teacher in training mode, its statistics not averaged; "running" (`segjax.methods.dacs`).
    normalise="apart": BatchNorm takes source, mixture and masked images each by itself, as separate passes would; "together".
    predicts="student": whose weights are reported; "teacher". statistics: `segjax.methods.dacs`.

    Deliberate differences: MIC's separate teacher (another alpha or threshold) is not built; a masked picture's detail loss is weighted
    with lambda_mic too (there its fused loss alone, the same at 1); with a window of the whole crop HRDA's code also measures the
    distance on the detail's features; random choices follow (seed, step); the last network is kept (DATUM's scripts keep the best by
    target labels).
    """
    check_choices(teacher=teacher, normalise=normalise, statistics=statistics, predicts=predicts, mean_over=mean_over)
    classes, changes = model.num_classes, photometric(jitter, jitter_probability, blur_probability)
    weights = {"source": 1.0, "mix": mix_weight} | ({"masked": mask_weight} if mask_weight else {})
    hidden: dict[str, Any] = dict(block=mask_block, ratio=mask_ratio, images=mask_images, view=changes if mask_view else {})
    things: dict[str, Any] = dict(num_classes=classes, classes=feature_classes, min_ratio=feature_min_ratio)
    shares: dict[str, Any] = dict(aux_weight=aux_weight, detail_weight=detail_weight, class_weights=class_weights)

    def init(key: Key, batch: Batch) -> TrainState:
        init_key, key = jax.random.split(key)
        variables = model.init(init_key, to_float(batch["source_image"]), train=False)
        return TrainState.create(key, variables, optimizer, ema=True, predicts=predicts)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        style_key, mix_key, mask_key, dropout_key = jax.random.split(state.step_key(), 4)
        image, target = pair_images(batch)
        image = in_the_look_of(style_key, image, target, betas, variant=variant, share=stylized_share)
        source = Labelled(image, batch["source_label"], jnp.ones(image.shape[:3], jnp.float32))

        seen, mean_teacher = state.ema_batch_stats, ema_update(state.ema_params, state.params, state.step, ema_decay)
        if teacher == "running":
            seen = ema_update(seen, state.batch_stats, state.step, ema_decay)
        pseudo, sure, seen = taught(model, mean_teacher, seen, target, threshold=threshold, train=teacher == "batch")
        inside = margin_weight((target.shape[1], target.shape[2]), top=ignore_top, bottom=ignore_bottom)
        inside = inside * (_border(batch) != IGNORE) if margins else inside
        pseudo = pseudo._replace(weight=pseudo.weight * inside)

        lessons = {"source": source, "mix": class_mix(mix_key, source, pseudo, classes, pool=pool, ignored=ignored, view=changes)}
        if mask_weight:
            lessons["masked"] = masked(mask_key, source, pseudo, **hidden)
        inputs = packed(lessons) | ({"target": target} if statistics == "target" else {})
        if feature_weight:
            inputs["imagenet"] = imagenet_features(model, state.variables, frozen, source.image)

        def terms(params, part, batch_stats, key):
            student_key, target_key = jax.random.split(key)
            how: dict[str, Any] = dict(weights=weights, normalise=normalise, mean_over=mean_over, **shares)
            found, outputs, after = lesson_terms(model, params, batch_stats, part, student_key, **how)
            if feature_weight:
                features = view(outputs, 0)["features"]
                total, count = feature_distance(features, part["imagenet"], part["source_label"], **things)
                found["loss/feature_distance"] = (feature_weight * total, count)
            if statistics == "target":
                _, after = train_forward(model, params, batch_stats, part["target"], target_key)
            return found, after

        learning = state.replace(ema_params=None, ema_batch_stats=None)
        learned, metrics = descend(learning, terms, inputs, optimizer, key=dropout_key, accumulate=accumulate)
        return learned.replace(ema_params=mean_teacher, ema_batch_stats=seen), metrics | {"pseudo/quality": sure}

    return Method(init, step, predictor(model))


def _border(batch: Batch) -> Array:
    if "target_label" not in batch:
        way_out = "wrap data.target in segjax.data.margins:Margins and set data.target_labels=True, or method.margins=False"
        raise ConfigError(f"method.margins reads where a target crop lies in its picture, but batches hold no target_label: {way_out}")
    return batch["target_label"]
