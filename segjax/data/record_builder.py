"""Any data set as ArrayRecord files of TensorFlow Datasets (no TensorFlow needed): one builder for every reader."""

import collections
import concurrent.futures
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from segjax.data.dataset import Dataset
from segjax.data.records import METADATA
from segjax.errors import ConfigError, DataError

SHARD_BYTES = 128 << 20
"""Aimed-at size of a file; one file's worth of encoded examples is held in memory while it is written."""
_PNG_EFFORT = 3  # zlib level of images that must be encoded anew: half the time of the default for 5 % more bytes


def build(
    datasets: Mapping[str, Dataset],
    output: "str | pathlib.Path",
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> bool:
    """Write data sets as the splits of one TFDS directory. Returns False when `output` already holds exactly these.

    datasets: split name -> data set, all labelled or all not, of one label space. Images that are upright 8-bit RGB files keep their own
    bytes, others become PNG; labels become PNGs of train ids. Names and the label space stand beside the records in `segjax.json`.
    progress(n): n more examples are written. Everything is written beside `output` and renamed at the end, so what stands there is whole;
    what a killed build left is removed by the next. threads: default one a core.
    ConfigError: `output` holds something else (overwrite=True replaces records), another build is writing it. DataError: an example that
    cannot be read, no space left.
    """
    output = pathlib.Path(output).absolute()
    metadata = _metadata(datasets)
    if _already_there(output, metadata, overwrite):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(output) as place:
        try:
            builder = SegmentationRecords(datasets, data_dir=str(place), threads=threads or os.cpu_count() or 1, progress=progress)
            with _quiet():
                builder.download_and_prepare()
            written = pathlib.Path(builder.data_dir)
            (written / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        except Exception as error:
            raise _explained(error, output) from error
        if output.exists():
            shutil.rmtree(output)
        os.replace(written, output)
    return True


class SegmentationRecords(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The TFDS builder: features image, label (absent when unlabelled) and name, in the data set's own order.

    Shards, not GeneratorBasedBuilder's shuffle: that one keeps up to 1 GB in memory and needs TensorFlow's files beyond.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded, so no checksums stand beside the code; looking needs a package that TFDS forgets to require

    def __init__(self, datasets: Mapping[str, Dataset], *, data_dir: str, threads: int, progress: Callable[[int], None]):
        self._datasets, self._threads, self._progress = datasets, threads, progress
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        first = next(iter(self._datasets.values()))
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "name": tfds.features.Text()}
        if first.labelled:
            names = list(first.label_space.classes)
            features["label"] = tfds.features.LabeledImage(labels=names, shape=(None, None, 1), encoding_format="png")
        description = f"Street scenes for semantic segmentation, label space {first.label_space.name}, 255 = ignore. Written by segjax."
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, description=description, features=features, disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
        del dl_manager  # the files are here
        parts = {split: _shards(dataset) for split, dataset in self._datasets.items()}
        return {split: [functools.partial(self._examples, self._datasets[split], part) for part in found] for split, found in parts.items()}

    def _examples(self, dataset: Dataset, part: range) -> Iterator[tuple[int, dict]]:
        """(index, example) of one shard, encoded by threads a little ahead (decoding and PNG's zlib leave Python's lock)."""
        waiting: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for index in part:
                waiting.append((index, pool.submit(encode, dataset, index)))
                if len(waiting) > 2 * self._threads:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)

    def _next(self, waiting: collections.deque) -> tuple[int, dict]:
        index, example = waiting.popleft()
        found = index, example.result()
        self._progress(1)
        return found


def encode(dataset: Dataset, index: int) -> dict:
    """One example as its record's fields: image and label as the bytes of image files, name. The example is read whole, so checked too."""
    example = dataset[index]
    fields = {"image": dataset.encoded_image(index) or _png(example["image"], _PNG_EFFORT), "name": example["name"]}
    return fields | ({"label": _png(example["label"], 6)} if dataset.labelled else {})


def _png(pixels: np.ndarray, effort: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=effort)
    return file.getvalue()


def _shards(dataset: Dataset) -> list[range]:
    """Index ranges of about SHARD_BYTES, judged by a few examples spread over the data set."""
    probes = {round(k * (len(dataset) - 1) / 3) for k in range(4)}
    size = sum(len(value) for index in probes for value in encode(dataset, index).values()) / len(probes)
    count = max(1, int(SHARD_BYTES // size))
    return [range(start, min(start + count, len(dataset))) for start in range(0, len(dataset), count)]


def _metadata(datasets: Mapping[str, Dataset]) -> dict:
    first = next(iter(datasets.values()))
    for split, dataset in datasets.items():
        if (dataset.label_space, dataset.labelled) != (first.label_space, first.labelled):
            raise ConfigError(f"split {split!r} is {dataset!r}, unlike {first!r}: write splits that differ so to folders of their own")
    space = first.label_space
    return {
        "label_space": {"name": space.name, "classes": list(space.classes), "palette": [list(colour) for colour in space.palette]},
        "labelled": first.labelled,
        "splits": {split: _split_metadata(dataset) for split, dataset in datasets.items()},
    }


def _split_metadata(dataset: Dataset) -> dict:
    names = [dataset.name(index) for index in range(len(dataset))]
    digest = hashlib.sha256(json.dumps([repr(dataset), repr(getattr(dataset, "stored", None)), names]).encode())
    for path in (path for pair in getattr(dataset, "pairs", ()) for path in pair if path is not None):
        state = path.stat()
        digest.update(f"{state.st_size} {state.st_mtime_ns};".encode())
    return {"source": repr(dataset), "fingerprint": digest.hexdigest(), "names": names}


def _already_there(output: pathlib.Path, metadata: dict, overwrite: bool) -> bool:
    """Whether `output` holds these very records. ConfigError when it holds anything that may not be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    try:
        found = json.loads((output / METADATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{output} exists and holds no records of segjax: choose a new or empty folder") from None
    if found == metadata:
        return True
    if not overwrite:
        sources = ", ".join(split["source"] for split in found["splits"].values())
        raise ConfigError(f"{output} holds other records ({sources}): choose another folder, or --overwrite")
    return False


@contextlib.contextmanager
def _alone(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `output` for one build at a time; removed at the end, or by the next build after a kill."""
    place = output.with_name(f".{output.name}.building")
    with open(output.with_name(f".{output.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another build is writing {output}: wait for it, or choose another folder") from None
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
            pathlib.Path(lock.name).unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints a banner and bars of its own; the caller shows progress."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _explained(error: Exception, output: pathlib.Path) -> Exception:
    """The error to raise. The record writer puts the operating system's words into a RuntimeError; our own errors stay what they are."""
    text = " ".join(str(error).split())
    if any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT)):
        return DataError(f"{output}: no space left on its disk: free some, choose another folder, or store smaller images with --resize")
    if isinstance(error, OSError | RuntimeError):
        return DataError(f"{output} cannot be written ({text}): check the folder and its disk")
    return error
