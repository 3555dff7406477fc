"""DiGA's self-training without a threshold (Shen et al., CVPR 2023, arXiv 2304.02222; code fy-vision/DiGA).

L = CE(S(v0), y) + CE(S(mix), y_mix) + lambda * [H(T(v0), S(v1)) + reverse * H(T(v1), S(v0))]

A pixel of the target keeps its offline pseudo-label where the nearest class centroid of the teacher's feature says the same (bilateral
consensus), else it is ignored. mix is a changed target image onto which half of a source image's classes are pasted (DACS); v0, v1, S and
T are those of `segjax.methods.diga_warmup`. Teacher and centroids move with every step, so the selection does.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import predictor, target_image, teacher_forward, to_float, train_forward
from segjax.nets.domain_views import SecondView
from segjax.ops import mixing, prototypes
from segjax.ops.consensus import consensus
from segjax.ops.fourier import Variant
from segjax.ops.pseudo_labels import hard_labels
from segjax.ops.supervised import supervised_terms
from segjax.ops.two_views import by_view, distillation_terms, logits_of, one_batch, view
from segjax.runtime.optim import ema_update
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import IGNORE, Array, Batch, Frozen, Key, Method, Metrics

SELECTIONS = ("consensus", "threshold", "offline")


class SelfTrainState(TrainState):
    """TrainState with the class centroids, float32 [K,D]; None where no method asks for them."""

    centroids: Array | None = None


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    selection: str = "consensus",
    threshold: float = 0.9,
    centroid_momentum: float = 1e-4,
    mix_weight: float = 1.0,
    second_view: str = "crossdomix",
    translator: str = "fda",
    beta: float = 0.01,
    variant: Variant = "centred",
    chain: str = "gta5",
    view_share: float = 0.3,
    distill_weight: float = 0.25,
    reverse_weight: float = 0.5,
    mean_over: Literal["valid", "all"] = "all",
    hard: tuple[float, int] | tuple[()] = (),
    ema_decay: float = 0.999,
    predicts: str = "student",
    statistics: str = "joint",
    faithful_view: bool = False,
    faithful_teacher: bool = False,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    accumulate: int = 1,
) -> Method:
    """One step reads as many target images as source images, with their offline labels (`data.target_labels=True`).

    selection: "consensus"; "threshold", the teacher's own label where its probability reaches `threshold` (the usual rule, for comparison);
    "offline", every offline label. Consensus starts from the centroids of an earlier stage, the stage's
    frozen={"centroids": "{stage:NAME}/centroids.safetensors"}; classes that none of its images held (count 0) never win. They move by
    centroid_momentum for each image in which a class has 5 pixels or more where teacher and label agree, target images first.
    mix_weight: of the mixed image's loss. chain, view_share: also of the target's photometric view.
    All else, the switches too, is `segjax.methods.diga_warmup`'s; start from its weights, of which teacher and student begin as copies.

    The student sees the two source views as one batch and the mixed images as another, as in the code, so BatchNorm normalises source and
    mixture apart. The teacher, whose statistics are fixed, sees all three together unless faithful_teacher.
    statistics: "joint", BatchNorm's running statistics see the source views and then the mixture, as in the code; "target" (not in it),
    those of the plain target images alone, which the student reads once more for them: what AdaBN does, while it trains.
    """
    checks = {
        "selection": (selection, SELECTIONS),
        "predicts": (predicts, ("student", "teacher")),
        "statistics": (statistics, ("joint", "target")),
    }
    for name, (value, known) in checks.items():
        if value not in known:
            raise ConfigError(f"method.{name}={value!r}: expected {' or '.join(map(repr, known))}")
    for name, share in (("threshold", threshold), ("centroid_momentum", centroid_momentum)):
        if not 0 <= share <= 1:
            raise ConfigError(f"method.{name}={share}: expected 0 to 1")
    if hard and len(hard) != 2:
        raise ConfigError(f"method.hard={hard!r}: expected () or (threshold, pixels kept at least), e.g. (0.7, 100_000)")
    classes, dtype = model.num_classes, getattr(model, "dtype", jnp.float32)
    other_view = SecondView(classes, second_view, translator, beta, variant, view_share, chain, faithful_view, dtype)
    heads: dict[str, Any] = dict(align_corners=model.align_corners, aux_weight=aux_weight)
    ce: dict[str, Any] = dict(**heads, mean_over=mean_over, hard=hard or None, class_weights=class_weights)
    distilled: dict[str, Any] = dict(**heads, reverse_weight=reverse_weight, weight=distill_weight)
    needs_labels, uses_centroids = selection != "threshold", selection == "consensus"

    def init(key: Key, batch: Batch) -> SelfTrainState:
        init_key, key = jax.random.split(key)
        image = to_float(batch["source_image"])
        variables = model.init(init_key, image, train=False)
        state = SelfTrainState.create(key, variables, optimizer, ema=True, predicts=predicts)
        if not uses_centroids:
            return state
        outputs = jax.eval_shape(lambda variables, image: model.apply(variables, image, train=False), variables, image)
        if "features" not in outputs:
            raise ConfigError(f"method.selection='consensus' reads features, and {type(model).__name__} gives {', '.join(outputs)} alone")
        return state.replace(centroids=jnp.zeros((classes, outputs["features"].shape[-1]), jnp.float32))

    def teach(variables: tuple[Any, Any], views: Array, target: Array, key: Key) -> tuple[dict, dict, Any]:
        """The teacher's outputs for both source views, by view, and for the target; its statistics."""
        params, batch_stats = variables
        if not faithful_teacher:
            batch = one_batch(jnp.concatenate([views, target[:, None]], 1))
            outputs = by_view(teacher_forward(model, params, batch_stats, batch)[0], 3)
            return {name: value[:, :2] for name, value in outputs.items()}, view(outputs, 2), batch_stats
        source_key, target_key = jax.random.split(key)
        source, batch_stats = teacher_forward(model, params, batch_stats, one_batch(views), source_key, train=True)
        found, batch_stats = teacher_forward(model, params, batch_stats, target, target_key, train=True)
        return by_view(source, 2), found, batch_stats

    def select(batch: Batch, outputs: dict[str, Array], size: tuple[int, int], centroids: Array | None, frozen: Frozen) -> Array:
        """The target's labels uint8 [B,H,W] that are learned from, 255 where none is."""
        if selection == "threshold":
            label, confidence = hard_labels(outputs["logits"], size, align_corners=model.align_corners)
            return jnp.where(confidence >= threshold, label, IGNORE).astype(jnp.uint8)
        offline = batch["target_label"]
        if centroids is None:
            return offline
        known = frozen["centroids"]["counts"] > 0
        return consensus(
            offline, prototypes.nearest_centroid(outputs["features"], centroids, size, known, align_corners=model.align_corners)
        )

    def step(state: SelfTrainState, frozen: Frozen, batch: Batch) -> tuple[SelfTrainState, Metrics]:
        view_key, target_key, mix_key, teacher_key, dropout_key = jax.random.split(state.step_key(), 5)
        source, target, label = to_float(batch["source_image"]), target_image(batch), batch["source_label"]
        _check(batch, needs_labels)
        size = label.shape[1], label.shape[2]
        centroids = state.centroids
        if centroids is not None:
            centroids = jnp.where(state.step == 0, _first(frozen, centroids), centroids)
        views = jnp.stack([source, other_view(view_key, source, label, target, frozen)], 1)

        old, new = (state.ema_params, state.ema_batch_stats), (state.params, state.batch_stats)
        teacher, teacher_stats = ema_update(old, new, state.step, ema_decay)
        teacher_stats = state.ema_batch_stats if faithful_teacher else teacher_stats
        taught, on_target, teacher_stats = teach((teacher, teacher_stats), views, target, teacher_key)
        target_label = select(batch, on_target, size, centroids, frozen)
        if centroids is not None:
            agreed = lambda outputs, label: prototypes.image_means(
                outputs["features"], prototypes.predicted_labels(outputs["logits"], label), classes
            )
            pairs = zip(agreed(on_target, target_label), agreed(view(taught, 1), label), strict=True)
            means, counted = (jnp.concatenate(pair) for pair in pairs)
            centroids = prototypes.move(centroids, means, counted, centroid_momentum)
        mask = mixing.cross_domix_mask(mix_key, label, classes)
        inputs = {
            "views": views,
            "label": label,
            **logits_of(taught),
            "mix": mixing.paste(mask, source, other_view.photometric(target_key, target)),
            "mix_label": mixing.paste(mask, label, target_label),
        }
        if statistics == "target":
            inputs["target"] = target

        def terms(params, part, batch_stats, key):
            source_key, mix_key, target_key = jax.random.split(key, 3)
            outputs, after = train_forward(model, params, batch_stats, one_batch(part["views"]), source_key)
            outputs = by_view(logits_of(outputs), 2)
            found = supervised_terms(view(outputs, 0), part["label"], **ce)
            if distill_weight:
                found |= distillation_terms(outputs, part, size, **distilled)
            mixed, after = train_forward(model, params, after, part["mix"], mix_key)
            if statistics == "target":
                _, after = train_forward(model, params, batch_stats, part["target"], target_key)
            return found | supervised_terms(mixed, part["mix_label"], **ce, name="loss/mix", weight=mix_weight), after

        learning = state.replace(ema_params=None, ema_batch_stats=None, centroids=None)
        learned, metrics = descend(learning, terms, inputs, optimizer, key=dropout_key, accumulate=accumulate)
        metrics[f"{selection}/share"] = jnp.mean(target_label != IGNORE, dtype=jnp.float32)
        return learned.replace(ema_params=teacher, ema_batch_stats=teacher_stats, centroids=centroids), metrics

    return Method(init, step, predictor(model))


def _check(batch: Batch, needs_labels: bool) -> None:
    count = {role: batch[f"{role}_image"].shape[0] for role in ("source", "target")}
    if count["source"] != count["target"]:
        raise ConfigError(f"{count['source']} source and {count['target']} target images in a batch: mixing needs one number of both")
    if needs_labels and "target_label" not in batch:
        raise ConfigError("the method reads the target's offline labels, but batches have none: set the stage's data.target_labels=True")


def _first(frozen: Frozen, like: Array) -> Array:
    """The centroids that the stage starts from, [K,D]. ConfigError: none, or of another network."""
    if not isinstance(frozen, dict) or "centroids" not in frozen:
        way_out = 'frozen={"centroids": "{stage:NAME}/centroids.safetensors"}'
        raise ConfigError(f"method.selection='consensus' needs class centroids: set the stage's {way_out}")
    found = frozen["centroids"]["centroids"]
    if found.shape != like.shape:
        raise ConfigError(f"centroids {found.shape} for a network with {like.shape} (classes, feature): make them with this network")
    return found
