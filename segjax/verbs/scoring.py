"""Scores a network on labelled data sets: exact integer confusion, summed on the device over sharded batches."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax.data import label_spaces, pipeline
from segjax.errors import ConfigError, DataError
from segjax.ops import metrics, resize
from segjax.runtime import mesh as meshes
from segjax.typing import IGNORE
from segjax.verbs import build

SAMPLES = 6
"""Evenly spaced images of a data set whose pictures are kept for the report, the same ones for every stage."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One data set and how it is scored.

    size: (height, width) that images are resized to, bilinear; None keeps their own. upsample: "prediction" takes the argmax at that size
    and resizes it to the label's, nearest (the CamVid figures of the Torch7 ENet); "logits" resizes the logits, bilinear, then takes the
    argmax (the papers' habit). headline: the mean that stands for the whole, e.g. "mIoU16".
    """

    name: str
    split: str
    dataset: Any
    size: tuple[int, int] | None
    upsample: str
    headline: str


@dataclasses.dataclass(frozen=True)
class Score:
    """confusion: int64 [K,K+1], rows = truth, last column = answers outside the label space. iou: float64 [K], nan = absent class."""

    trial: Trial
    confusion: np.ndarray
    iou: np.ndarray
    means: Mapping[str, float]
    images: int

    @property
    def miou(self) -> float:
        return self.means[self.trial.headline]


def trials(stage: build.Stage, only: str = "") -> list[Trial]:
    """The data sets of a stage's `evaluate`, or the one named `only`. ConfigError or DataError names what is wrong."""
    specs = stage.spec["evaluate"]
    if only and only not in specs:
        raise ConfigError(f"--dataset={only}: stage {stage.name} evaluates {', '.join(specs) or 'nothing'}")
    return [_trial(name, spec, f"config.stages.{stage.name}.evaluate.{name}") for name, spec in specs.items() if only in ("", name)]


def _trial(name: str, spec: Mapping[str, Any], where: str) -> Trial:
    size = spec.get("size") or None
    if size is not None and (not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)):
        raise ConfigError(f"{where}.size={size!r}: expected (height, width) in pixels, e.g. (512, 1024)")
    data = build.dataset(spec, where, scored=True)
    if not data.labelled:
        raise DataError(f"{where}: {data!r} has no labels, so it cannot be scored")
    upsample = spec.get("upsample", "logits")
    if upsample not in ("logits", "prediction"):
        raise ConfigError(f"{where}.upsample={upsample!r}: expected 'logits' or 'prediction'")
    headline = spec.get("score", "") or f"mIoU{data.label_space.num_classes}"
    if headline not in subsets(data.label_space):
        raise ConfigError(f"{where}.score={headline!r}: {data.label_space.name} has {', '.join(subsets(data.label_space))}")
    return Trial(name, spec.get("split", "val"), data, size, upsample, headline)


def subsets(space: label_spaces.LabelSpace) -> dict[str, list[int]]:
    """Mean's name -> train ids that it is over: all classes (`mIoU19`), and every smaller space within them (`mIoU16`, `mIoU13`)."""
    found = {f"mIoU{space.num_classes}": list(range(space.num_classes))}
    for other in label_spaces.LABEL_SPACES.values():
        if set(other.classes) < set(space.classes):
            found[f"mIoU{other.num_classes}"] = [space.classes.index(name) for name in other.classes]
    return found


class Scorer:
    """Scores states of one stage's method; compiles once for each image and label size, however often it is called."""

    def __init__(self, stage: build.Stage, space: label_spaces.LabelSpace, first: int, mesh: jax.sharding.Mesh):
        """space, first: what the network's outputs mean (`build.output_space`)."""
        self._stage, self._space, self._first, self._mesh = stage, space, first, mesh
        self._step = jax.jit(self._predict_and_count, static_argnames=("upsample", "classes"))

    def __call__(self, state: Any, trial: Trial, samples: pathlib.Path | None = None) -> Score:
        """One pass over a data set. samples: folder that receives the pictures of `SAMPLES` images."""
        to = trial.dataset.label_space
        table = self._table(to)
        batch_size = -(-self._stage.spec["batch_size"] // self._mesh.size) * self._mesh.size
        batches = pipeline.evaluation_batches(
            trial.dataset,
            batch_size=batch_size,
            size=trial.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        chosen = set(np.linspace(0, len(trial.dataset) - 1, SAMPLES).round().astype(int).tolist())
        confusion = np.zeros((to.num_classes, to.num_classes + 1), np.int64)
        for number, batch in enumerate(batches):
            arrays = meshes.put_batch({key: batch[key] for key in ("image", "label")}, self._mesh)
            counts, prediction = self._step(state, arrays["image"], arrays["label"], table, upsample=trial.upsample, classes=to.num_classes)
            confusion += np.asarray(counts, np.int64)
            if samples is not None and jax.process_count() == 1:
                self._keep(samples, batch, prediction, [i - number * batch_size for i in chosen], to)
        return _score(trial, confusion)

    def _table(self, to: label_spaces.LabelSpace) -> np.ndarray:
        """uint8 [outputs]: the data set's train id that each output stands for; K where it has none, which counts as a miss."""
        mapped = np.arange(to.num_classes, dtype=np.uint8) if to == self._space else label_spaces.mapping(self._space, to)
        table = np.concatenate([np.full(self._first, IGNORE, np.uint8), mapped.astype(np.uint8)])
        return np.where(table == IGNORE, to.num_classes, table).astype(np.uint8)

    def _predict_and_count(self, state, image, label, table, *, upsample: str, classes: int):
        logits = self._stage.method.predict(state, (), image)
        if upsample == "logits" and logits.shape[1:3] != label.shape[1:3]:
            logits = resize.bilinear(logits, label.shape[1:3], align_corners=self._stage.model.align_corners)
        prediction = jnp.argmax(logits, -1).astype(jnp.uint8)
        if prediction.shape[1:3] != label.shape[1:3]:
            prediction = resize.nearest(prediction, label.shape[1:3])
        prediction = jnp.take(table, prediction)
        return metrics.confusion_matrix(label, prediction, classes, misses=True), prediction

    def _keep(self, folder: pathlib.Path, batch: dict, prediction: jax.Array, rows: list[int], space: label_spaces.LabelSpace) -> None:
        rows = [row for row in rows if 0 <= row < len(batch["name"])]
        if not rows:
            return
        folder.mkdir(parents=True, exist_ok=True)
        predicted = np.asarray(prediction)
        for row in rows:
            name = _file_name(batch["name"][row])
            Image.fromarray(batch["image"][row]).save(folder / f"{name}.image.jpg", quality=90)
            Image.fromarray(space.colorize(batch["label"][row])).save(folder / f"{name}.truth.png")
            Image.fromarray(space.colorize(predicted[row])).save(folder / f"{name}.prediction.png")


def _file_name(name: str) -> str:
    """A data set's name for an image as one file name: folders joined, suffix dropped."""
    return str(pathlib.PurePosixPath(name).with_suffix("")).replace("/", "_").replace(".", "_")


def _score(trial: Trial, confusion: np.ndarray) -> Score:
    means = {name: metrics.mean_iou(confusion, ids) for name, ids in subsets(trial.dataset.label_space).items()}
    return Score(trial, confusion, metrics.iou(confusion), means, len(trial.dataset))
