"""CLOUDS' second stage: collaborating foundation models (Benigmim et al., CVPR 2024, arXiv 2312.09788; code yasserben/CLOUDS).

L = L_mask(S(v(x_s)), y_s) + L_mask(S(v(x_g)), SAM(x_g, argmax T(x_g)))        over all images of the batch at once

x_s are labelled source images, x_g generated ones, v a colour jitter, S the student and T the moving average of its head, both over one
frozen CLIP. Large components of T's label prompt SAM, whose masks take the label's place (`segjax.nets.label_refiner`); an image without
a large component keeps T's label. L_mask is the first stage's loss (`segjax.methods.clouds_warmup`), from whose weights this one starts.
No target image is read: domain generalisation.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets import label_refiner, mask_learning
from segjax.nets.apply import predictor, target_image, to_float
from segjax.nets.initial import initial
from segjax.ops.mask_losses import POINTS, WEIGHTS, Ignored, Weights, semantic_targets
from segjax.ops.photometric_views import SSD, ssd_view
from segjax.ops.sam_refine import MIN_AREA, NUM_POINTS
from segjax.ops.two_views import apart, side_by_side
from segjax.runtime.optim import ema_update_every
from segjax.runtime.state import TrainState, parts_of
from segjax.runtime.update import descend
from segjax.typing import IGNORE, Array, Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    segmenter: Any = None,
    min_area: int = MIN_AREA,
    prompt_points: int = NUM_POINTS,
    erode: bool = False,
    remove_overlaps: bool = True,
    second_pass: bool = False,
    places: int | None = None,
    chunk: int = 4,
    ema_decay: float = 0.999,
    ema_every: int = 100,
    averages: Literal["head", "network"] = "head",
    predicts: str = "student",
    weights: tuple[float, float, float, float] = WEIGHTS,
    points: int = POINTS,
    ignored: Ignored = "negative",
    jitter: tuple[float, float, float, float] | tuple[()] = SSD,
    generated_jitter: tuple[float, float, float, float] | tuple[()] = SSD,
    jitter_probability: float = 0.5,
    backbone_trains: bool = False,
    accumulate: int = 1,
) -> Method:
    """Batches hold source images with labels and, as `target_image`, generated ones; in any two numbers (there each batch draws them).

    segmenter: the module of SAM, MobileSAM or EfficientSAM, with the stage's frozen={"segmenter": FILE}; None: the teacher's labels as they
    are. min_area .. chunk: `nets.label_refiner.refine_labels`; min_area in pixels of the crop, 5000 of 768x768. A batch may bring
    `target_sam_features`, the segmenter's features [B,h,w,C] of exactly these images; they are then not encoded again.
    ema_decay, ema_every: T moves every so many steps, before the step. averages: "head", as released: T's backbone is the student's, also
    where it learns; "network", T is an average of all. predicts: whose weights are reported; "teacher".
    generated_jitter: of what the student sees of generated images; the teacher and the segmenter see them as they are. () for none: T and
    the student then share the frozen backbone's maps. All else: `segjax.methods.clouds_warmup`.

    Of all that is frozen one pass is made: source, jittered and plain generated images in one batch. The teacher labels as the network
    answers (`model.ensemble`, off as released, has a switch of its own for it there). Random points follow (seed, step); every other
    difference is a part's (`ops.sam_refine`, `ops.mask_losses`).
    """
    for name, value, known in (("averages", averages, ("head", "network")), ("predicts", predicts, ("student", "teacher"))):
        if value not in known:
            raise ConfigError(f"method.{name}={value!r}: expected {' or '.join(map(repr, known))}")
    if ema_every < 1 or not 0 <= ema_decay <= 1:
        raise ConfigError(f"method.ema_every={ema_every}, ema_decay={ema_decay}: expected 1 or more steps, and 0 to 1")
    if segmenter is not None:
        label_refiner.check(segmenter, prompt_points, second_pass)
    fixed, classes = mask_learning.fixed(model), model.num_classes
    shared = mask_learning.NO_HEAD if averages == "head" else fixed
    losses: dict[str, Any] = dict(weights=Weights(*weights), points=points, ignored=ignored)
    prompts: dict[str, Any] = dict(min_area=min_area, num_points=prompt_points, places=places, erode=erode, chunk=chunk)
    prompts |= dict(remove_overlaps=remove_overlaps, second_pass=second_pass, num_classes=classes)

    def init(key: Key, batch: Batch) -> TrainState:
        del batch
        init_key, key = jax.random.split(key)
        variables = initial(model, init_key)
        return TrainState.create(key, variables, optimizer, ema=True, predicts=predicts, fixed=fixed, shared=shared)

    def changed(key: Key, image: Array, strengths: Any) -> Array:
        return ssd_view(key, image, strengths, probability=jitter_probability) if strengths else image

    def looked_at(state: TrainState, lesson: Array, clean: Array, counts: tuple[int, int]) -> tuple[dict[str, Array], list[Array]]:
        """What the losses are computed from, and the teacher's maps. lesson: what the student sees, `counts` of source and generated."""
        if not fixed:
            return {"image": lesson}, mask_learning.features(model, state.teacher, clean)[0]
        if not generated_jitter:
            maps, _ = mask_learning.features(model, state.variables, lesson)
            return mask_learning.as_inputs(maps), [apart(x, counts)[1] for x in maps]
        everything = side_by_side(*apart(lesson, counts), clean)
        parts = [apart(x, (*counts, counts[1])) for x in mask_learning.features(model, state.variables, everything)[0]]
        return mask_learning.as_inputs([side_by_side(*part[:2]) for part in parts]), [part[2] for part in parts]

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        source_key, generated_key, prompt_key, loss_key = jax.random.split(state.step_key(), 4)
        clean = target_image(batch)
        counts, size = (batch["source_image"].shape[0], clean.shape[0]), (clean.shape[1], clean.shape[2])
        if batch["source_image"].shape[1:3] != size:
            raise ConfigError(f"source crops of {batch['source_image'].shape[1:3]} and generated ones of {size}: give both one size")
        source = changed(source_key, to_float(batch["source_image"]), jitter)
        lesson = side_by_side(source, changed(generated_key, clean, generated_jitter))

        teacher = ema_update_every(state.ema_params, parts_of(state.params, state.ema_params), state.step, ema_decay, ema_every)
        seen = ema_update_every(state.ema_batch_stats, parts_of(state.batch_stats, state.ema_batch_stats), state.step, ema_decay, ema_every)
        state = state.replace(ema_params=teacher, ema_batch_stats=seen)
        inputs, maps = looked_at(state, lesson, clean, counts)
        label = mask_learning.labels(model, state.teacher, maps, size)
        targets, metrics = semantic_targets(label, classes), {}
        if segmenter is not None:
            refined = refine(prompt_key, frozen, batch, label)
            targets = refined.targets
            metrics = {"pseudo/prompts": jnp.mean(refined.prompts, dtype=jnp.float32)}
            metrics["pseudo/labelled"] = jnp.mean(refined.label != IGNORE, dtype=jnp.float32)
        true = semantic_targets(batch["source_label"], classes)
        both = {"masks": side_by_side(true.masks, targets.masks), "classes": side_by_side(true.classes, targets.classes)}

        def terms(params: Any, part: dict[str, Array], batch_stats: Any, key: Key):
            return mask_learning.learned_terms(model, params, batch_stats, part, key, train=backbone_trains, **losses)

        learning = state.replace(ema_params=None, ema_batch_stats=None)
        learned, found = descend(learning, terms, {**both, **inputs}, optimizer, key=loss_key, accumulate=accumulate, fixed=fixed)
        return learned.replace(ema_params=teacher, ema_batch_stats=seen), found | metrics

    def refine(key: Key, frozen: Frozen, batch: Batch, label: Array) -> Any:
        kept = label_refiner.kept_features(batch, segmenter)
        variables = label_refiner.frozen_weights(frozen, segmenter)
        return label_refiner.refine_labels(segmenter, variables, key, batch["target_image"], label, features=kept, **prompts)

    return Method(init, step, predictor(model))
