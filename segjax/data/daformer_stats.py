"""The three JSON files of class statistics that DAFormer's converters leave in a data set's folder, and that HRDA and MIC read.

    sample_class_stats.json        list of {train id: pixels, ..., "file": label file}
    sample_class_stats_dict.json   label file -> {train id: pixels}
    samples_with_class.json        train id -> list of [label file, pixels]

Ids are JSON strings, a class that an image lacks is left out, and the label file is the `*_labelTrainIds.png` that those programs read.
Source: tools/convert_datasets/{gta,synthia,cityscapes}.py of lhoyer/DAFormer.
"""

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from segjax.data import label_spaces
from segjax.data.label_spaces import LabelSpace
from segjax.errors import DataError

FILES = ("sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json")
_TAG = re.compile(r"(_leftImg8bit|_rgb_anon|_image|(_gtFine|_gtCoarse|_gt)?_label(Train)?Ids|_train_id)$")
_LABEL_TAG = re.compile(r"(_labelIds|_labelTrainIds|_train_id)?$")


def train_ids(space: LabelSpace) -> np.ndarray:
    """The id that class k has in the files, int [K]: Cityscapes' where every class is one of them (they know no other), else k."""
    return np.array([_known(space).index(name) for name in space.classes])


def _known(space: LabelSpace) -> tuple[str, ...]:
    cityscapes = label_spaces.get("cityscapes19").classes
    return cityscapes if set(space.classes) <= set(cityscapes) else space.classes


def key(file: str) -> str:
    """What identifies an image: its base name without folder, suffix and layout tags ('a/b_gtFine_labelTrainIds.png' -> 'b')."""
    return _TAG.sub("", pathlib.PurePosixPath(file.replace("\\", "/")).stem, count=1)


def label_file(path: str) -> str:
    """The train-id file that DAFormer's converter writes beside this label file."""
    file = pathlib.PurePosixPath(path)
    return file.with_name(_LABEL_TAG.sub("_labelTrainIds", file.stem, count=1) + ".png").as_posix()


def write(folder: "str | pathlib.Path", space: LabelSpace, files: Sequence[str], counts: np.ndarray) -> list[pathlib.Path]:
    """Writes the three files. files: N label files; counts: int [N,K]. Returns the paths."""
    ids = train_ids(space)
    order = np.argsort(ids)
    rows = {file: {str(ids[k]): int(row[k]) for k in order if row[k]} for file, row in zip(files, counts, strict=True)}
    with_class: dict[str, list] = {}
    for file, row in rows.items():
        for name, pixels in row.items():
            with_class.setdefault(name, []).append([file, pixels])
    contents = ([{**row, "file": file} for file, row in rows.items()], rows, with_class)
    paths = [pathlib.Path(folder) / name for name in FILES]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return paths


def parse(content, path: "str | pathlib.Path", space: LabelSpace) -> dict[str, np.ndarray]:
    """The content of any of the three files as key(file) -> pixels of each class of `space`, int64 [K].

    Ids of Cityscapes classes that `space` lacks are dropped (GTA5's statistics under 16 classes). DataError: another form, an unknown id,
    two files of one base name.
    """
    try:
        rows = _rows(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is none of {', '.join(FILES)} as DAFormer writes them ({error!r}): run `data stats`") from error
    ids, known = train_ids(space), len(_known(space))
    found: dict[str, np.ndarray] = {}
    for file, row in rows.items():
        if row and max(row) >= known:
            raise DataError(
                f"{path}: {file} has the id {max(row)}, expected train ids 0..{known - 1}: it counts other classes than {space.name}"
            )
        if key(file) in found:
            raise DataError(f"{path} names {key(file)!r} twice (folders do not count): expected unique base names")
        found[key(file)] = np.array([row.get(int(number), 0) for number in ids], np.int64)
    return found


def _rows(content) -> dict[str, dict[int, int]]:
    if isinstance(content, list):
        return {str(row["file"]): {int(k): int(v) for k, v in row.items() if k != "file"} for row in content}
    rows: dict[str, dict[int, int]] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            rows[name] = {int(k): int(v) for k, v in value.items()}
        else:
            for file, pixels in value:
                rows.setdefault(str(file), {})[int(name)] = int(pixels)
    return rows
