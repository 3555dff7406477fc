"""What the methods of DACS's family share: the teacher's labels, and one pass of the student over all that it learns from."""

from typing import Any

import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.nets.apply import teacher_forward, views_forward
from segjax.ops.mixtures import Labelled
from segjax.ops.pseudo_labels import hard_labels, quality
from segjax.ops.supervised import supervised_terms
from segjax.ops.two_views import by_view, view
from segjax.typing import Array, Key, Terms

LOSSES = {"source": "loss/ce", "mix": "loss/mix", "masked": "loss/masked"}
"""The names of the lessons' losses."""
CHOICES = {
    "teacher": ("batch", "running"),
    "normalise": ("apart", "together"),
    "statistics": ("joint", "target"),
    "predicts": ("student", "teacher"),
    "mean_over": ("all", "valid"),
}


def check_choices(**chosen: str) -> None:
    """ConfigError that names the knob of a method whose value is none of CHOICES."""
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise ConfigError(f"method.{name}={value!r}: expected {' or '.join(map(repr, CHOICES[name]))}")


def photometric(jitter: float, jitter_probability: float, blur_probability: float) -> dict[str, Any]:
    """Settings of `ops.photometric_views.strong_view` as this family draws them: one strength for all four changes, one coin a batch."""
    return dict(jitter=(jitter,) * 4, jitter_probability=jitter_probability, blur_probability=blur_probability, together=True)


def taught(model: Any, params: Any, batch_stats: Any, target: Array, *, threshold: float, train: bool) -> tuple[Labelled, Array, Any]:
    """Target images with the teacher's labels, all weighted with the share of the batch's pixels of which it is sure by `threshold`.

    Also that share, and the teacher's BatchNorm statistics, which move with `train` (the batch's own normalise then; never dropout).
    """
    outputs, batch_stats = teacher_forward(model, params, batch_stats, target, train=train)
    size = target.shape[1], target.shape[2]
    label, confidence = hard_labels(outputs["logits"], size, align_corners=model.align_corners)
    sure = quality(confidence, threshold)
    return Labelled(target, label, jnp.broadcast_to(sure, label.shape)), sure, batch_stats


def lesson_terms(
    model: Any,
    params: Any,
    batch_stats: Any,
    part: dict[str, Array],
    key: Key,
    *,
    weights: dict[str, float],
    normalise: Any,
    mean_over: str,
    **options: Any,
) -> tuple[Terms, dict[str, Array], Any]:
    """The weighted cross-entropy of every lesson in `part` (`ops.mixtures.packed`), from one pass of the student over all of them.

    weights: of the lessons' losses, in the lessons' order. normalise: `nets.apply.views_forward`. mean_over "all" divides by all pixels,
    "valid" by the labelled ones, whatever their weights. options: of `ops.supervised.supervised_terms`.
    Also the outputs by view, each [B,V,...], and the new statistics.
    """
    outputs, after = views_forward(model, params, batch_stats, part["views"], key, statistics=normalise)
    outputs, found = by_view(outputs, len(weights)), {}
    for number, (name, weight) in enumerate(weights.items()):
        own: dict[str, Any] = dict(name=LOSSES[name], weight=weight, pixel_weight=part[f"{name}_weight"], align_corners=model.align_corners)
        mean: Any = "labelled" if mean_over == "valid" else "all"
        found |= supervised_terms(view(outputs, number), part[f"{name}_label"], mean_over=mean, **own, **options)
    return found, outputs, after
