"""Scores from one summed integer confusion matrix: counted on the device, divided in float64 on the host."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array

SYNTHIA_16 = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Cityscapes train ids of the 16 classes that SYNTHIA has (no terrain, truck, train)."""
SYNTHIA_13 = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
"""Those without wall, fence and pole: the 13-class mean of the literature."""

_PIXELS_A_CHUNK = 1 << 16


def confusion_matrix(label: Array, prediction: Array, num_classes: int, *, misses: bool = False) -> Array:
    """Pixel counts, int32 [K,K]: rows are the truth, columns the prediction. Jittable; sum over batches in int64 on the host.

    label, prediction: ints of equal shape. A label outside 0..K-1 (255 too) is not counted. A prediction outside 0..K-1 hits no
    column: with misses=True the result is [K,K+1] and its last column counts them, so that the scores below count them as misses,
    as cityscapesScripts does for predictions of an ignored id; with misses=False such pixels are left out.
    On CPU a scatter-add, elsewhere products of one-hot blocks (exact: a block's counts stay below float32's 2^24).
    """
    if label.shape != prediction.shape:
        raise ConfigError(f"label {label.shape} and prediction {prediction.shape} differ: resize the prediction to the label first")
    columns = num_classes + 1
    truth, guess = (jnp.asarray(x).reshape(-1).astype(jnp.int32) for x in (label, prediction))
    truth = jnp.where((truth >= 0) & (truth < num_classes), truth, num_classes)
    guess = jnp.where((guess >= 0) & (guess < num_classes), guess, num_classes)

    def scatter(truth, guess):
        return jnp.bincount(truth * columns + guess, length=columns * columns).astype(jnp.int32).reshape(columns, columns)

    def product(truth, guess):
        chunk = min(_PIXELS_A_CHUNK, max(1, truth.size))
        pad = -truth.size % chunk
        blocks = [jnp.pad(x, (0, pad), constant_values=num_classes).reshape(-1, chunk) for x in (truth, guess)]
        ids = jnp.arange(columns)[:, None]

        def body(total, block):
            rows, answers = ((x == ids).astype(jnp.bfloat16) for x in block)
            counts = lax.dot_general(rows, answers, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            return total + counts.astype(jnp.int32), None

        return lax.scan(body, jnp.zeros((columns, columns), jnp.int32), tuple(blocks))[0]

    counts = lax.platform_dependent(truth, guess, cpu=scatter, default=product)
    return counts[:num_classes, : columns if misses else num_classes]


def _parts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hits, truth, predicted) of each class, float64 [K], from a [K,K] or [K,K+1] matrix."""
    confusion = np.asarray(confusion)
    classes = confusion.shape[0] if confusion.ndim == 2 else -1
    if confusion.ndim != 2 or confusion.shape[1] not in (classes, classes + 1) or not np.issubdtype(confusion.dtype, np.integer):
        raise ConfigError(f"confusion matrix is {confusion.dtype}{list(confusion.shape)}: expected integers [K,K] or [K,K+1]")
    counts = confusion.astype(np.int64)
    return np.diagonal(counts).astype(float), counts.sum(1).astype(float), counts[:, :classes].sum(0).astype(float)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [K] in 0..1; NaN for a class absent from truth and prediction alike.

    confusion: integers [K,K], or [K,K+1] with missed pixels in the last column.
    """
    hits, truth, predicted = _parts(confusion)
    return _ratio(hits, truth + predicted - hits)


def mean_iou(confusion: np.ndarray, classes: Sequence[int] | None = None, *, absent: float | None = None) -> float:
    """Mean IoU, float in 0..1, over `classes` (default all); the confusion matrix stays that of all classes.

    absent None: classes absent from truth and prediction are left out of the mean (the official protocol); 0.0: they count as zero.
    NaN when no class is present. Summed in class order as cityscapesScripts' getScoreAverage does, so that both agree to the last digit.

    A network trained on SYNTHIA never answers terrain, truck or train: on Cityscapes these score 0 and a mean over 19 divides by three
    classes that it could not learn. The literature's figures are `SYNTHIA_16` and `SYNTHIA_13` of the 19-class matrix.
    """
    scores = iou(confusion)[list(range(len(confusion)) if classes is None else classes)]
    if absent is not None:
        scores = np.where(np.isnan(scores), absent, scores)
    present = scores[~np.isnan(scores)].tolist()
    total = 0.0
    for score in present:  # not sum(), which compensates its rounding since Python 3.12
        total += score
    return total / len(present) if present else float("nan")


def accuracies(confusion: np.ndarray) -> dict[str, float]:
    """Overall pixel accuracy, mean class accuracy (recall) and frequency-weighted IoU, floats in 0..1, keys `accuracy/...`.

    Source: runningScore in fy-vision/DiGA util/metrics.py.
    """
    hits, truth, _ = _parts(confusion)
    recall, scores, total = _ratio(hits, truth), iou(confusion), truth.sum()
    if total == 0:
        return dict.fromkeys(("accuracy/pixel", "accuracy/class", "accuracy/weighted_iou"), float("nan"))
    return {
        "accuracy/pixel": float(hits.sum() / total),
        "accuracy/class": float(np.nanmean(recall)),
        "accuracy/weighted_iou": float(np.sum((truth * scores)[truth > 0]) / total),
    }
