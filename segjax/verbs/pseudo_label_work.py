"""Labels a data set: the networks over all images, thresholds from the whole set's histogram, label files, pseudo.json and its picture."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from segjax.data import evaluation, pseudo, sealed
from segjax.data.transforms import resize_image
from segjax.errors import DataError, Preempted
from segjax.ops import pseudo_labels
from segjax.runtime.preemption import Preemption
from segjax.runtime.prefetch import Prefetch
from segjax.verbs import pseudo_label_picture, startup
from segjax.verbs.folder import PARTIAL
from segjax.verbs.progress import progress
from segjax.verbs.pseudo_label_files import BINS, Files, Sums, write, write_png
from segjax.verbs.pseudo_label_network import Labeller
from segjax.verbs.pseudo_label_summary import summarize
from segjax.verbs.pseudo_label_values import CONSENSUS, NO_RULE, Job


def make(job: Job, labeller: Labeller, mesh: jax.sharding.Mesh, place: pathlib.Path, about: dict[str, Any]) -> tuple[dict[str, Any], Sums]:
    """Makes what is missing in the folder `place` and returns (what pseudo.json holds, the sums behind it).

    about: what pseudo.json says besides. Raises Preempted when asked to stop; DataError on a file that cannot be read. The same call goes
    on, and ends with the same bytes as one that was never stopped.
    """
    files = Files(place, pseudo.file_names(job.dataset), job.dataset.label_space.num_classes)
    first = jax.process_index() == 0
    if first:
        (place / pseudo.SUMMARY).unlink(missing_ok=True)  # what is not whole must not pass for it
        if not (place / PARTIAL).exists():
            shutil.rmtree(place / pseudo.LABELS, ignore_errors=True)
        (place / PARTIAL).mkdir(parents=True, exist_ok=True)
    # Under consensus a confidence is 1 or 0, so its threshold needs no look at the whole set.
    needed = {NO_RULE: np.zeros(files.classes, np.uint32), CONSENSUS: np.ones(files.classes, np.uint32)}.get(job.rule)
    missing = _missing(files.raw if needed is None else files.sums, len(files.names))
    _label(job, labeller, mesh, files, missing, needed)
    startup.barrier("labelled")
    thresholds = np.zeros(files.classes)
    if needed is None:
        thresholds = _thresholds(job, files)
        needed = np.floor(thresholds * BINS).astype(np.uint32)
        mine = _mine(_missing(files.sums, len(files.names)))
        with progress("thresholds", len(mine)) as advance, _pool() as pool:
            for _ in pool.map(lambda index: _finish(job, files, index, *files.read_raw(index), needed), mine):
                advance(1)
    startup.barrier("finished")
    sums, lines, sizes = files.total()
    summary = summarize(job, sums, sizes, thresholds) | about
    summary["labels_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
    summary["sha256"] = sealed.digest(summary)
    if first:
        write(place / pseudo.SUMS, lines.encode())
        strips = [Image.open(path) for path in sorted(files.strip(0).parent.glob("*.png"))]
        pseudo_label_picture.picture(strips, summary).save(place / "pseudo.png")
        write(place / pseudo.SUMMARY, json.dumps(summary, indent=1).encode())
    startup.barrier("wrote pseudo.json")
    return summary, sums


def _missing(path_of, count: int) -> frozenset[int]:
    """The images without that file, the same in every process, whatever the others have written since."""
    missing = np.array([not path_of(index).is_file() for index in range(count)])
    if jax.process_count() > 1:
        missing = np.asarray(multihost_utils.broadcast_one_to_all(missing))
    return frozenset(np.flatnonzero(missing).tolist())


def _mine(indices: Iterable[int]) -> list[int]:
    return sorted(index for index in indices if index % jax.process_count() == jax.process_index())


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _label(job: Job, labeller: Labeller, mesh: jax.sharding.Mesh, files: Files, missing: frozenset[int], needed: np.ndarray | None) -> None:
    """The networks over every batch that lacks an image: files of it, raw ones where the thresholds (`needed`) are not known yet."""
    if not missing:
        return
    batches = evaluation.evaluation_batches(
        job.dataset.unlabelled(),
        batch_size=-(-job.batch_size // mesh.size) * mesh.size,
        size=job.size,
        only=missing,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    put = lambda batch: (batch, labeller.put(batch, None if job.look is None else _styles(job.look.dataset, batch)))
    waiting: collections.deque = collections.deque()
    feed = Prefetch(batches, put)
    with contextlib.closing(feed), Preemption() as preemption, progress("label", len(missing)) as advance, _pool() as pool:

        def settle(most: int) -> None:
            while len(waiting) > most:
                batch, label, bins = waiting.popleft()
                rows = zip(batch["index"].tolist(), batch["size"].tolist(), _local_rows(label), _local_rows(bins), strict=True)
                store = lambda row: _store(job, files, needed, *row)
                advance(sum(pool.map(store, [row for row in rows if row[0] in missing])))

        for number in itertools.count():
            try:
                batch, arrays = feed.next()
            except StopIteration:
                break
            if reason := preemption.requested(number):
                settle(0)
                raise Preempted(f"{reason}: {_kept(files)} in {files.place}; the same command goes on with the rest")
            fitted = job.size is not None and not batch["exact"]
            waiting.append((batch, *labeller(arrays, canvas=tuple(batch["canvas"]), fitted=fitted)))
            settle(1)  # the device works on this batch while the one before is written
        settle(0)


def _kept(files: Files) -> str:
    done = sum(files.raw(index).is_file() or files.sums(index).is_file() for index in range(len(files.names)))
    return f"labelled {done} of {len(files.names)} images"


def _local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a batch, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _styles(style: Any, batch: dict[str, Any]) -> np.ndarray:
    """The style image of each row, at the size of the images: the next one in order, as the two-model system pairs them."""
    shape = batch["image"].shape[1:3]
    with _pool() as pool:
        load = lambda index: resize_image(style.image(max(index, 0) % len(style)), shape)
        return np.stack(list(pool.map(load, batch["index"].tolist())))


def _store(job: Job, files: Files, needed: np.ndarray | None, index: int, size: list[int], label: np.ndarray, bins: np.ndarray) -> int:
    label, bins = label[: size[0], : size[1]], bins[: size[0], : size[1]]
    if needed is None:
        files.write_raw(index, label, bins)
    else:
        _finish(job, files, index, label, bins, needed)
    return 1


def _finish(job: Job, files: Files, index: int, label: np.ndarray, bins: np.ndarray, needed: np.ndarray) -> None:
    """One image's row of the picture, its label file and its sums."""
    truth, space = None, job.dataset.label_space
    if job.scored:
        truth = job.dataset.label(index)
        if truth.shape != label.shape:
            (a, b), (c, d) = truth.shape, label.shape
            raise DataError(f"label of {job.dataset.name(index)} is {b}x{a} but its image is {d}x{c}: set resize, or evaluate=False")
    kept = files.kept(label, bins, needed)
    if index in pseudo_label_picture.shown(len(files.names)):
        strip = pseudo_label_picture.strip(job.dataset.image(index), kept, bins / BINS, space)
        write_png(files.strip(index), np.asarray(strip), level=6)
    files.finish(index, label, bins, kept, truth)


def _thresholds(job: Job, files: Files) -> np.ndarray:
    """The confidence that each class needs, from the histogram over all images; every process reads its share of them."""
    files.write_histogram(jax.process_index(), _mine(range(len(files.names))))
    startup.barrier("histogram")
    histogram = np.sum([np.load(files.histogram(process)) for process in range(jax.process_count())], axis=0)
    return pseudo_labels.class_thresholds(histogram, share=job.share, rule=job.rule, cap=job.cap)
