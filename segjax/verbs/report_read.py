"""Reads run directories for `segjax report`. The form that it reads is written in `segjax.verbs.report`."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from segjax.errors import DataError

ROWS = "rows.json"
"""What `segjax run` keeps of a config's rows: {"name": [stage, ...]}, each a row that averages over stages."""


@dataclasses.dataclass(frozen=True)
class Score:
    """How one stage did on one data set. `iou` float64 [K], nan where a class is absent.

    confusion: int64 [K,K] rows = truth, or None. misses: int64 [K], pixels of a class that were given an answer outside the classes.
    headline: what the mean is over, e.g. "mIoU16".
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    iou: np.ndarray
    miou: float
    headline: str
    confusion: np.ndarray | None
    misses: np.ndarray
    step: int | None
    images: int | None
    samples: dict[str, dict[str, pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage's folder: `metrics` maps a key to its (steps, values). labels: pseudo.json of a stage that made pseudo-labels, else {}."""

    name: str
    folder: pathlib.Path
    config: dict[str, Any]
    info: dict[str, Any]
    metrics: dict[str, tuple[np.ndarray, np.ndarray]]
    scores: dict[str, Score]
    labels: dict[str, Any]
    done: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """One DIR of the command line."""

    name: str
    folder: pathlib.Path
    stages: tuple[Stage, ...]


def read_run(folder: pathlib.Path) -> Run:
    """A directory left by `segjax run` (NN-stage folders) or `segjax train` (one stage). DataError when it is neither."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run directory; pass the --workdir of a `segjax run` or `segjax train`")
    parts = sorted((p for p in folder.iterdir() if p.is_dir() and re.fullmatch(r"\d+-.+", p.name)), key=lambda p: int(p.name.split("-")[0]))
    stages = [_read_stage(part, part.name.split("-", 1)[1]) for part in parts if _is_stage(part)]
    if not stages and _is_stage(folder):
        stages = [_read_stage(folder, folder.name)]
    if not stages:
        raise DataError(f"{folder}: no stage found (expected NN-STAGE folders or metrics.jsonl, config.json, eval/): is this a --workdir?")
    return Run(folder.name or str(folder), folder, tuple(stages + _mean_stages(folder, stages)))


def _mean_stages(folder: pathlib.Path, stages: list[Stage]) -> list[Stage]:
    """For each of a run's rows a stage with the mean scores of its stages, once all of them are scored."""
    found, by_name = [], {stage.name: stage for stage in stages}
    for row, members in _read_json(folder / ROWS).items():
        parts = [by_name[name] for name in members if name in by_name]
        shared = [name for name in parts[0].scores if all(name in part.scores for part in parts)] if len(parts) == len(members) else []
        if shared:
            scores = {name: _mean_score([part.scores[name] for part in parts]) for name in shared}
            name, done = f"{row}, mean of {len(members)}", all(part.done for part in parts)
            found.append(Stage(name, folder, config={}, info={}, metrics={}, scores=scores, labels={}, done=done))
    return found


def _mean_score(scores: list[Score]) -> Score:
    """IoU of each class averaged over scores that have it, and their mean IoU averaged."""
    iou = np.stack([score.iou for score in scores])
    counts = np.isfinite(iou).sum(0)
    mean = np.where(counts > 0, np.nansum(iou, 0) / np.maximum(counts, 1), np.nan)
    return dataclasses.replace(scores[0], iou=mean, miou=float(np.mean([score.miou for score in scores])), confusion=None, samples={})


def _is_stage(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.jsonl", "config.json", "eval"))


def _read_stage(folder: pathlib.Path, name: str) -> Stage:
    config = _read_json(folder / "config.json")
    evaluate = config.get("evaluate")
    order = list(evaluate) if isinstance(evaluate, dict) else []
    found = [_read_score(path) for path in sorted((folder / "eval").glob("*.json"))]
    rank = lambda score: next((i for i, name in enumerate(order) if score.name.startswith(f"{name}-")), len(order))
    scores = sorted(found, key=rank)
    return Stage(
        name=name,
        folder=folder,
        config=config,
        info=_read_json(folder / "run.json"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        scores={score.name: score for score in scores},
        labels=_read_json(folder / "pseudo.json"),
        done=(folder / "done.json").exists(),
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}): delete it or make it again with its verb") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _read_metrics(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of metrics.jsonl. A resumed run writes some steps again: the last line of a step counts. A half-written line is skipped."""
    if not path.exists():
        return {}
    columns: dict[str, dict[int, float]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            continue
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                columns.setdefault(key, {})[row["step"]] = float(value)
    ordered = {key: sorted(points.items()) for key, points in columns.items()}
    return {key: (np.array([s for s, _ in p]), np.array([v for _, v in p], np.float64)) for key, p in ordered.items()}


def _read_score(path: pathlib.Path) -> Score:
    raw = _read_json(path)
    classes = raw.get("classes")
    if not isinstance(classes, list) or "iou" not in raw:
        raise DataError(f"{path}: no `classes` and `iou` in it, so it is not a score: make it again with `segjax evaluate`")
    iou = raw["iou"]
    values = [iou.get(name) for name in classes] if isinstance(iou, dict) else iou
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    if len(array) != len(classes):
        raise DataError(f"{path}: {len(array)} IoU values for {len(classes)} classes: make it again with `segjax evaluate`")
    miou = raw.get("miou")
    mean = float(np.nanmean(array)) if miou is None and np.isfinite(array).any() else float("nan" if miou is None else miou)
    palette = [(int(r), int(g), int(b)) for r, g, b in raw.get("palette") or []] or _hues(len(classes))
    confusion = raw.get("confusion")
    return Score(
        name=path.stem,
        classes=tuple(classes),
        palette=tuple(palette),
        iou=array,
        miou=mean,
        headline=str(raw.get("headline", "mIoU")),
        misses=np.array(raw.get("misses") or [0] * len(classes), np.int64),
        confusion=None if confusion is None else np.array(confusion, np.int64),
        step=raw.get("step"),
        images=raw.get("images"),
        samples=_samples(path.with_suffix("") / "samples"),
    )


def _hues(count: int) -> list[tuple[int, int, int]]:
    """Colours for a data set that names none: evenly spaced hues."""
    import colorsys

    colours = (colorsys.hsv_to_rgb(i / max(count, 1), 0.6, 0.85) for i in range(count))
    return [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in colours]


def _samples(folder: pathlib.Path) -> dict[str, dict[str, pathlib.Path]]:
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(folder.glob("*.*.*")):
        name, kind, _ = path.name.rsplit(".", 2)
        if kind in ("image", "truth", "prediction"):
            found.setdefault(name, {})[kind] = path
    return found
