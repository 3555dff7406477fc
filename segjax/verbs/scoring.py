"""Scores a network on labelled data sets: exact integer confusion, summed on the device over sharded batches."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax.data import evaluation, label_spaces
from segjax.data.transforms import Size, checked
from segjax.errors import ConfigError, DataError
from segjax.ops import metrics
from segjax.runtime import mesh as meshes
from segjax.typing import IGNORE
from segjax.verbs import build, inference

SAMPLES = 6
"""Evenly spaced images of a data set whose pictures are kept for the report, the same ones for every stage."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One data set and how it is scored.

    size: (height, width) that images are resized to, or the length of their shorter edge; None keeps their own. The score counts the
    label's own pixels either way.
    how: windows, views and up-sampling. headline: the mean that stands for the whole, e.g. "mIoU16".
    """

    name: str
    split: str
    dataset: Any
    size: Size | None
    how: inference.Inference
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


def trials(stage: build.Stage, only: str = "", changes: Mapping[str, Any] | None = None) -> list[Trial]:
    """The data sets of a stage's `evaluate`, or the one named `only`. changes: keys that replace each entry's (the verbs' flags).

    ConfigError or DataError names what is wrong.
    """
    specs = stage.spec["evaluate"]
    if only and only not in specs:
        raise ConfigError(f"--dataset={only}: stage {stage.name} evaluates {', '.join(specs) or 'nothing'}")
    learned = learned_by(stage.spec.get("data", {}).get("source", {}))
    return [
        _trial(name, {**spec, **(changes or {})}, f"config.stages.{stage.name}.evaluate.{name}", learned)
        for name, spec in specs.items()
        if only in ("", name)
    ]


def _trial(name: str, spec: Mapping[str, Any], where: str, learned: tuple[str, ...]) -> Trial:
    size = spec.get("size") or None
    size = checked(size, f"{where}.size")
    how = inference.from_spec(spec, f"{where}.")
    data = build.dataset(spec, where, scored=True)
    if not data.labelled:
        raise DataError(f"{where}: {data!r} has no labels, so it cannot be scored")
    return Trial(name, spec.get("split", "val"), data, size, how, headline(data.label_space, spec.get("score", ""), learned, where))


def headline(space: label_spaces.LabelSpace, wanted: str, learned: tuple[str, ...], where: str) -> str:
    """The mean that stands for a score: `wanted`, else the largest over classes that were `learned`. ConfigError: no such mean."""
    means = subsets(space)
    found = wanted or next((mean for mean, ids in means.items() if {space.classes[i] for i in ids} <= set(learned)), next(iter(means)))
    if found not in means:
        raise ConfigError(f"{where}.score={found!r}: {space.name} has {', '.join(means)}")
    return found


def learned_by(source: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a stage's source can teach: what SYNTHIA lacks should not be divided by, whatever the network's outputs."""
    names = f"{source.get('make', '')} {source.get('encoding', '')}".lower()
    space = source.get("label_space", "cityscapes19")
    space = label_spaces.get("synthia16") if "synthia" in names and space == "cityscapes19" else label_spaces.get(space)
    return space.classes


def subsets(space: label_spaces.LabelSpace) -> dict[str, list[int]]:
    """Mean's name -> train ids that it is over: all classes (`mIoU19`), and every smaller space within them (`mIoU16`, `mIoU13`).

    A smaller mean is over rows of the one confusion matrix: an answer "bus" on a truck's pixel is a false positive of bus in all of
    them, as in the literature's 19-class code. To leave such pixels out altogether, score with label_space="synthia16".
    """
    found = {f"mIoU{space.num_classes}": list(range(space.num_classes))}
    for other in label_spaces.LABEL_SPACES.values():
        if set(other.classes) < set(space.classes):
            found[f"mIoU{other.num_classes}"] = [space.classes.index(name) for name in other.classes]
    return found


class Scorer:
    """Scores states of one stage's method; compiles once for each shape of image and label, however often it is called."""

    def __init__(self, stage: build.Stage, space: label_spaces.LabelSpace, first: int, mesh: jax.sharding.Mesh):
        """space, first: what the network's outputs mean (`build.output_space`)."""
        self._stage, self._space, self._first, self._mesh = stage, space, first, mesh
        # Every process reads the counts, so each gets them whole.
        self._step = jax.jit(
            self._answer_and_count,
            static_argnames=("how", "canvas", "fitted", "classes"),
            out_shardings=(meshes.replicated(mesh), meshes.batch_sharding(mesh)),
        )

    def __call__(self, state: Any, trial: Trial, samples: pathlib.Path | None = None) -> Score:
        """One pass over a data set. samples: folder that receives the pictures of `SAMPLES` images."""
        to = trial.dataset.label_space
        table = self._table(to)
        batches = evaluation.evaluation_batches(
            trial.dataset,
            batch_size=-(-self._stage.spec["batch_size"] // self._mesh.size) * self._mesh.size,
            size=trial.size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        chosen = set(np.linspace(0, len(trial.dataset) - 1, SAMPLES).round().astype(int).tolist())
        confusion = np.zeros((to.num_classes, to.num_classes + 1), np.int64)
        for batch in batches:
            arrays = meshes.put_batch({key: batch[key] for key in ("image", "label", "size")}, self._mesh)
            fitted = isinstance(trial.size, tuple) and not batch["exact"]
            static = dict(how=trial.how, canvas=batch["canvas"], fitted=fitted, classes=to.num_classes)
            counts, prediction = self._step(state, arrays, table, **static)
            confusion += np.asarray(counts, np.int64)
            if samples is not None:
                _keep(samples, batch, prediction, chosen, to, padded=trial.size is None and not batch["exact"])
        return score(trial, confusion)

    def _table(self, to: label_spaces.LabelSpace) -> np.ndarray:
        """uint8 [outputs]: the data set's train id that each output stands for; K where it has none, which counts as a miss."""
        mapped = np.arange(to.num_classes, dtype=np.uint8) if to == self._space else label_spaces.mapping(self._space, to)
        table = np.concatenate([np.full(self._first, IGNORE, np.uint8), mapped.astype(np.uint8)])
        return np.where(table == IGNORE, to.num_classes, table).astype(np.uint8)

    def _answer_and_count(self, state, arrays, table, *, how: inference.Inference, canvas: tuple[int, int], fitted: bool, classes: int):
        static: dict[str, Any] = dict(align_corners=self._stage.model.align_corners, how=how, canvas=canvas, fitted=fitted)
        prediction = inference.answer(self._stage.method.predict, state, arrays["image"], arrays["size"], **static)
        prediction = jnp.take(table, prediction)
        return metrics.confusion_matrix(arrays["label"], prediction, classes, misses=True), prediction


def score(trial: Trial, confusion: np.ndarray) -> Score:
    """A trial's summed confusion int64 [K,K+1] as IoU and named means."""
    means = {name: metrics.mean_iou(confusion, ids) for name, ids in subsets(trial.dataset.label_space).items()}
    return Score(trial, confusion, metrics.iou(confusion), means, len(trial.dataset))


def _keep(
    folder: pathlib.Path, batch: dict, prediction: jax.Array, chosen: set[int], space: label_spaces.LabelSpace, *, padded: bool
) -> None:
    rows = [row for row, index in enumerate(batch["index"]) if index in chosen]
    if not rows:
        return
    shards = sorted(prediction.addressable_shards, key=lambda shard: shard.index[0].start or 0)  # this process's rows, as in `batch`
    predicted = np.concatenate([np.asarray(shard.data) for shard in shards])
    for row in rows:
        height, width = batch["size"][row]
        image = batch["image"][row, :height, :width] if padded else batch["image"][row]
        label, answer = batch["label"][row, :height, :width], predicted[row, :height, :width]
        write_sample(folder, batch["name"][row], image, label, answer, space)


def write_sample(
    folder: pathlib.Path, name: str, image: np.ndarray, label: np.ndarray, answer: np.ndarray, space: label_spaces.LabelSpace
) -> None:
    """The pictures of one image, as `segjax report` reads them: photograph, truth and answer in the palette's colours."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = _file_name(name)
    Image.fromarray(image).save(folder / f"{stem}.image.jpg", quality=90)
    Image.fromarray(space.colorize(label)).save(folder / f"{stem}.truth.png")
    Image.fromarray(space.colorize(answer)).save(folder / f"{stem}.prediction.png")


def _file_name(name: str) -> str:
    """A data set's name for an image as one file name: folders joined, suffix dropped."""
    return str(pathlib.PurePosixPath(name).with_suffix("")).replace("/", "_").replace(".", "_")
