"""How many pixels of each class every image holds: computed once, kept in stats.json, read from DAFormer's files too."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from segjax.data import daformer_stats, parallel
from segjax.data.dataset import Dataset
from segjax.data.label_spaces import LabelSpace
from segjax.errors import DataError
from segjax.typing import IGNORE

FILE = "stats.json"
FORMAT = "segjax.stats/1"
IGNORED = "(ignored)"


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Pixels of each class in each image of a data set.

    names: N example names in the data set's order. counts: int64 [N,K], pixels of class k in image n at the size that the data set gives.
    ignored: int64 [N], pixels that are no class; None where the file that these came from does not say.
    """

    label_space: LabelSpace
    names: tuple[str, ...]
    counts: np.ndarray
    ignored: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def totals(self) -> np.ndarray:
        """Pixels of each class over the set, int64 [K]."""
        return self.counts.sum(0)

    def frequencies(self) -> np.ndarray:
        """Share of each class among all pixels that have one, float64 [K]; zeros when no pixel has."""
        return self.totals / max(int(self.totals.sum()), 1)

    def images_with(self, more_than: int = 0) -> np.ndarray:
        """Number of images that hold more than `more_than` pixels of each class, int64 [K]."""
        return (self.counts > more_than).sum(0)

    def rare_class_probabilities(self, temperature: float = 0.01) -> np.ndarray:
        """softmax((1 - f) / temperature) over the classes that occur, float64 [K]; 0 for those that do not.

        Source: DAFormer, equation 6, and its uda_dataset.py (f over present classes, float64 here, float32 there).
        """
        frequency, present = self.frequencies(), self.totals > 0
        if not present.any():
            return np.zeros(len(frequency))
        logits = np.where(present, (1 - frequency) / temperature, -np.inf)
        weight = np.exp(logits - logits.max())
        return weight / weight.sum()


def compute(dataset: Dataset, *, threads: int | None = None, progress: Callable[[int, int], None] | None = None) -> Statistics:
    """Reads every label once. progress(done, total) after each. DataError: an unlabelled set, an unreadable label, two equal names."""
    space, names = dataset.label_space, _names(dataset)
    table = np.zeros((len(dataset), space.num_classes + 1), np.int64)
    walk = parallel.in_order(
        lambda i: np.bincount(dataset.label(i).ravel(), minlength=256), len(dataset), threads=threads, progress=progress
    )
    for index, histogram in enumerate(walk):
        strays = np.flatnonzero(histogram[space.num_classes : IGNORE]) + space.num_classes
        if len(strays):
            raise DataError(f"{names[index]}: label ids {strays.tolist()[:12]} are no class of {space.name}: run `data check`")
        table[index] = histogram[[*range(space.num_classes), IGNORE]]
    return Statistics(space, names, table[:, :-1].copy(), table[:, -1].copy())


def save(statistics: Statistics, folder: "str | pathlib.Path", dataset: Dataset) -> pathlib.Path:
    """Writes FOLDER/stats.json, one line an image, and returns its path. The data set's repr in it tells later whether it still fits."""
    columns, table = list(statistics.label_space.classes), statistics.counts
    if statistics.ignored is not None:
        columns, table = [*columns, IGNORED], np.column_stack([table, statistics.ignored])
    head = {
        "format": FORMAT,
        "dataset": repr(dataset),
        "label_space": statistics.label_space.name,
        "classes": list(statistics.label_space.classes),
        "examples": len(statistics),
        "pixels": statistics.totals.tolist(),
        "ignored": None if statistics.ignored is None else int(statistics.ignored.sum()),
        "images_with": statistics.images_with().tolist(),
        "columns": columns,
    }
    rows = (f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in zip(statistics.names, table.tolist(), strict=True))
    body = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.part")
    half.write_text(f'{{\n{body},\n  "images": {{\n' + ",\n".join(rows) + "\n  }\n}\n", encoding="utf-8")
    os.replace(half, path)
    return path


def load(path: "str | pathlib.Path", dataset: Dataset) -> Statistics:
    """Statistics of `dataset` from stats.json, from one of DAFormer's three files, or from a folder that holds one of them.

    Every example of the data set must be in the file; the file may hold more (a split reads the statistics of the whole). Ours match by
    example name, DAFormer's by base name. DataError: no such file, other classes, examples that it does not name (the first ones listed).
    """
    path = _find(pathlib.Path(path))
    content = _read(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _ours(path, content, dataset)
    space, names = dataset.label_space, _names(dataset)
    found = daformer_stats.parse(content, path, space)
    keys = [daformer_stats.key(name) for name in names]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(
            f"{path} names files without folders, but {dataset!r} has several called {twice!r}: use `data stats` and its {FILE}"
        )
    _all_there(path, names, [key in found for key in keys], found)
    return Statistics(space, names, np.stack([found[key] for key in keys]))


def load_current(folder: "str | pathlib.Path", dataset: Dataset) -> Statistics | None:
    """FOLDER/stats.json when it was computed from this very data set (same repr and names, no label file newer), else None."""
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = _read(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("dataset") != repr(dataset):
            return None
        statistics = _ours(path, content, dataset)
    except DataError:
        return None
    written = path.stat().st_mtime
    files = [label for _, label in getattr(dataset, "pairs", ()) if label is not None]
    return statistics if len(content["images"]) == len(dataset) and all(file.stat().st_mtime <= written for file in files) else None


def _ours(path: pathlib.Path, content: dict, dataset: Dataset) -> Statistics:
    space, names = dataset.label_space, _names(dataset)
    if content.get("classes") != list(space.classes):
        raise DataError(
            f"{path} counts the classes of {content.get('label_space')}, expected {space.name}: run `data stats` for this data set"
        )
    images = content.get("images", {})
    _all_there(path, names, [name in images for name in names], images)
    columns, classes = content.get("columns", []), space.num_classes
    try:
        table = np.array([images[name] for name in names], np.int64).reshape(len(names), len(columns))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not every image has {len(columns)} counts ({error}): run `data stats --force`") from error
    return Statistics(space, names, table[:, :classes].copy(), table[:, classes].copy() if columns[classes:] == [IGNORED] else None)


def _all_there(path: pathlib.Path, names: tuple[str, ...], there: list[bool], found) -> None:
    missing = [name for name, known in zip(names, there, strict=True) if not known]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of {len(names)} examples, first {missing[:10]} (it names {list(found)[:3]} ...): "
            "it belongs to another data set or split; run `data stats` for this one"
        )


def _names(dataset: Dataset) -> tuple[str, ...]:
    names = tuple(dataset.name(i) for i in range(len(dataset)))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{dataset!r} has several examples named {twice!r}: statistics need one name an example")
    return names


def _find(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        return path
    known = (FILE, *daformer_stats.FILES)
    for name in known:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path} holds none of {', '.join(known)}: run `data stats` with --workdir={path}")


def _read(path: pathlib.Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist, expected the statistics of a data set: run `data stats`") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}): run `data stats --force`") from error
