"""Images with the labels that networks gave them: reads what a pseudo-label stage (`segjax pseudo-label`) leaves.

DIR/labels/NAME.png      uint8 train ids, 255 = not labelled, at the image's own size
DIR/labels.sha256        one line a label as `sha256sum` writes it (`cd DIR && sha256sum -c labels.sha256`)
DIR/pseudo.json          written last: label space, counts, thresholds, and the sha256 of labels.sha256 and of its own values
"""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import files, sealed
from segjax.data.dataset import Dataset, Example
from segjax.data.files import SizeMismatch
from segjax.data.pairing import IMAGE_SUFFIXES
from segjax.data.relabelled import Relabelled
from segjax.errors import DataError

SUMMARY, SUMS, LABELS = "pseudo.json", "labels.sha256", "labels"
_READERS = 8  # threads that hash: a network disk answers many at once


class PseudoLabelled(Relabelled):
    """The images of `dataset` with the labels in the folder `labels` that a pseudo-label stage left.

    dataset: any data set; labels of its own are never read. In a config: `{"make": "segjax.data.pseudo:PseudoLabelled", "dataset":
    {"make": ...}, "labels": "{stage:NAME}"}`. Labels of images that `dataset` does not have may be there. cache: see Dataset.
    Every label file is hashed once, here. DataError, one line: no folder, labels that are not whole, that were changed after they were
    written, that lack an image of `dataset`, have another size than it or belong to another label space.
    """

    def __init__(self, dataset: Dataset, labels: "str | pathlib.Path", *, cache: bool = False):
        super().__init__(dataset, cache)
        self.root = pathlib.Path(labels)
        self.summary = read_summary(self.root)
        if tuple(self.summary["classes"]) != self.label_space.classes:
            raise DataError(
                f"{self.root}: its labels are {self.summary['label_space']} with {len(self.summary['classes'])} classes, but {dataset!r} "
                f"is {self.label_space.name} with {self.label_space.num_classes}: set the data set's label_space, or label it anew"
            )
        self._paths = _verified(self.root, self.summary, self.dataset)
        self._check_size(0, files.read_label(self._paths[0]))

    def __repr__(self) -> str:
        # Not the folder: a run that was moved is still the same run.
        return f"{type(self).__name__}({self.dataset!r}, labels {self.summary['labels_sha256'][:16]})"

    def _label(self, index: int) -> np.ndarray:
        return files.read_label(self._paths[index])

    def _load(self, index: int) -> Example:
        example = {"image": self._image(index), "name": self._name(index)}
        if self.labelled:
            example["label"] = self._label(index)
            self._check_size(index, example["label"], example["image"].shape[:2])
        return example

    def _check_size(self, index: int, label: np.ndarray, size: tuple[int, int] | None = None) -> None:
        height, width = size or self._image_size(index)
        if label.shape != (height, width):
            raise SizeMismatch(
                f"{self._paths[index]} is {label.shape[1]}x{label.shape[0]} but {self._name(index)} is {width}x{height}: give the images "
                "the size that they had when they were labelled (resize), or label them anew"
            )


def file_name(name: str) -> str:
    """The label file below `labels/` of an image of that name: the same with .png, inside that folder whatever the name is."""
    path = pathlib.PurePosixPath(name)
    path = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
    return "/".join(part for part in path.parts if part not in (path.anchor, "..", ".")) + ".png"


def file_names(dataset: Dataset) -> list[str]:
    """`file_name` of every image. DataError when two images would share a file."""
    found: dict[str, str] = {}
    for name in map(dataset.name, range(len(dataset))):
        other = found.setdefault(file_name(name), name)
        if other != name or len(found) > len(dataset):
            raise DataError(f"{other} and {name} of {dataset!r} would share the label file {file_name(name)}: rename one of them")
    if len(found) < len(dataset):
        raise DataError(f"{dataset!r} has {len(dataset)} images and {len(found)} names: labels go by name, so each needs its own")
    return list(found)


def read_summary(folder: pathlib.Path) -> dict[str, Any]:
    """pseudo.json of a whole set of pseudo-labels, `sealed.read`."""
    again = "make it with `segjax pseudo-label` or the run's `segjax run`, which go on where they stopped"
    return sealed.read(folder / SUMMARY, "pseudo-labels", again)


def _verified(root: pathlib.Path, summary: Mapping[str, Any], dataset: Dataset) -> list[pathlib.Path]:
    """The label file of each image, every one hashed and found as it was written."""
    again = "label the images anew"
    content = (root / SUMS).read_bytes() if (root / SUMS).is_file() else b""
    if hashlib.sha256(content).hexdigest() != summary["labels_sha256"]:
        raise DataError(f"{root / SUMS} is missing or not what {SUMMARY} was written with: {again}")
    sums = {name: sha256 for sha256, _, name in (line.partition("  ") for line in content.decode().splitlines())}
    names = [f"{LABELS}/{name}" for name in file_names(dataset)]
    unlabelled = [name for name in names if name not in sums]
    if unlabelled:
        raise DataError(
            f"{root}: {len(unlabelled)} of {len(names)} images of {dataset!r} have no label there, first {unlabelled[:3]}: "
            f"{len(sums)} images were labelled; {again}, or take a data set of those"
        )
    paths = [root / name for name in names]
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_sha256, paths))
    wrong = [path for path, name, sha256 in zip(paths, names, found, strict=True) if sha256 != sums[name]]
    if wrong:
        what = "is missing" if not wrong[0].is_file() else "is damaged or was changed after it was written"
        more = f" (and {len(wrong) - 1} more of {len(paths)})" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]} {what}{more}: {again}")
    return paths


def _sha256(path: pathlib.Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
