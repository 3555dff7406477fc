"""What pseudo.json says of the labels: shares, thresholds, confidences and, where there is a truth, how right they are."""

from typing import Any

import numpy as np

from segjax.ops import metrics
from segjax.verbs.pseudo_label_files import Sums
from segjax.verbs.pseudo_label_values import CONSENSUS, NO_RULE, Job


def summarize(job: Job, sums: Sums, sizes: dict[str, int], thresholds: np.ndarray) -> dict[str, Any]:
    """What pseudo.json says of the labels. Shares are of 1; None where a class was never predicted, or has no truth."""
    space, predicted = job.dataset.label_space, sums.histogram.sum(1)
    summary = {
        "label_space": space.name,
        "classes": list(space.classes),
        "palette": [list(colour) for colour in space.palette],
        "images": len(job.dataset),
        "sizes": sizes,
        "pixels": int(sums.pixels),
        "rule": job.rule,
        **({} if job.rule in (NO_RULE, CONSENSUS) else {"share": job.share, "cap": job.cap}),
        "thresholds": thresholds.tolist(),
        "predicted": (predicted / sums.pixels).tolist(),
        "kept": _shares(sums.kept, predicted),
        "kept_pixels": float(sums.kept.sum() / sums.pixels),
        "histogram": sums.histogram.tolist(),
    }
    if job.scored:
        parts = {"all": sums.every, "kept": sums.confident}
        right = {name: np.diagonal(part) for name, part in parts.items()}
        summary["precision"] = {name: _shares(right[name], part[:, :-1].sum(0)) for name, part in parts.items()}
        summary["iou"] = {name: [_number(value) for value in metrics.iou(part)] for name, part in parts.items()}
    return summary


def _shares(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
    return [float(a / b) if b else None for a, b in zip(part, whole, strict=True)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
