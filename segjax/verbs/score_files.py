"""Scores label PNGs that some program has written, without a network: the same counts that `evaluate` makes of its own answers."""

import collections
import fnmatch
import pathlib
import re

import numpy as np

from segjax.data import encodings, label_spaces
from segjax.data.files import read_label
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE
from segjax.verbs import scoring

CITYSCAPES_FRAME = re.compile(r"^[^_]+_\d{6}_\d{6}(?=_)")
"""<city>_<sequence>_<frame>, which a prediction's name must begin with: cityscapesScripts pairs by `<city>_<sequence>_<frame>*.png`."""
IDS = ("trainId", "labelId")


def score_files(trial: scoring.Trial, folder: pathlib.Path, ids: str) -> scoring.Score:
    """Scores the PNGs below `folder` on a trial's data set. ids: "trainId" (of the data set's label space) or "labelId" (Cityscapes).

    A prediction belongs to an image when it begins with the image's Cityscapes frame, else when its path below `folder` is the image's
    with .png. An id that is no class of the label space, 255 too, is a miss of the true class, as in cityscapesScripts.
    DataError: a prediction that is missing, there twice, no 8-bit PNG, or of another size than its label. ConfigError: unknown ids.
    """
    if not folder.is_dir():
        raise DataError(f"--predictions={folder}: no such folder")
    space, data = trial.dataset.label_space, trial.dataset
    if ids == "labelId" and not set(space.classes) <= set(label_spaces.get("cityscapes19").classes):
        raise ConfigError(f"--ids=labelId: {space.name} is no part of Cityscapes; use --ids=trainId")
    table = encodings.decode_table(space, ids)
    columns = space.num_classes + 1
    table = np.where(table == IGNORE, space.num_classes, table).astype(np.int64)
    confusion = np.zeros((space.num_classes, columns), np.int64)
    found = _by_folder(folder)
    for index in range(len(data)):
        path = _prediction(folder, found, data.name(index))
        answer, label = read_label(path), data.label(index)
        if answer.shape != label.shape:
            (a, b), (c, d) = answer.shape, label.shape
            raise DataError(f"{path} is {b}x{a} but the label of {data.name(index)} is {d}x{c}: write predictions at the label's size")
        counted = label < space.num_classes
        pairs = label[counted].astype(np.int64) * columns + table[answer[counted]]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(confusion.shape)
    return scoring.score(trial, confusion)


def _by_folder(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """PNGs by their frame, or by their path below `folder` without suffix where they have none."""
    found = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if fnmatch.fnmatch(path.name, "*.png"):
            found[_key(path.relative_to(folder).as_posix())].append(path)
    return found


def _key(name: str) -> str:
    frame = CITYSCAPES_FRAME.match(pathlib.PurePosixPath(name).name)
    return frame.group() if frame else str(pathlib.PurePosixPath(name).with_suffix(""))


def _prediction(folder: pathlib.Path, found: dict[str, list[pathlib.Path]], name: str) -> pathlib.Path:
    paths = found.get(_key(name), [])
    if len(paths) == 1:
        return paths[0]
    key = _key(name)
    if paths:
        raise DataError(f"{paths[0]} and {paths[1]} are both predictions for {name}: keep one of them in --predictions={folder}")
    raise DataError(f"--predictions={folder} has no {key}*.png for {name}: predict the whole split (`segjax predict --ids=labelId`)")
