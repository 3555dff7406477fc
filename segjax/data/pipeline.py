"""Batches for training, in one order that depends on nothing but the seed.

Training element i depends on (seed, i) only. The global batch of step s is elements s * B .. s * B + B - 1 and process p of P holds its
p-th contiguous block, so workers, hosts, devices and a restart at any step change who reads an element, never what it is.
"""

import functools
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.experimental import ZipMapDataset

from segjax.data.transforms import check_crop, random_crop
from segjax.errors import ConfigError, DataError

Batch = dict


def training_batches(
    source,
    target=None,
    *,
    batch_size: int,
    crop: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    flip: bool = True,
    seed: int,
    start_step: int = 0,
    steps: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    target_batch_size: int | None = None,
    target_labels: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of steps start_step .. steps - 1 as dicts of uint8 arrays.

    source: labelled data set -> `source_image` [b,h,w,3], `source_label` [b,h,w]. target: -> `target_image`, of the same crop, paired at
    random, its labels never read unless `target_labels` (pseudo-labels) -> `target_label`. b is this process's share of the global
    batch_size (target_batch_size, default the same). Each data set is shuffled anew every epoch and repeated without end.
    crop (height, width), scale, flip: `transforms.random_crop`. workers: processes that read; 0 reads in threads of this one.
    Closing or dropping the iterator stops the workers. ConfigError: sizes that do not divide. DataError (before the first batch): empty
    set, unlabelled source, crop larger than the image.
    """
    if not 0 < scale[0] <= scale[1]:
        raise ConfigError(f"data.scale={tuple(scale)} is not a range, expected 0 < lowest <= highest, e.g. (0.5, 1.5)")
    if workers < 0:
        raise ConfigError(f"data.workers={workers}: expected 0 (threads of this process) or a number of processes")
    if "label" not in _first(source, crop):
        raise DataError(f"{source!r} has no labels, but a source must be labelled: set its labels folder, or use it as the target")
    knobs: dict[str, Any] = dict(crop=tuple(crop), scale=tuple(scale), flip=flip)
    place: dict[str, Any] = dict(steps=range(start_step, steps), process_index=process_index, process_count=process_count)
    parts = [_stream(source, "source", batch_size, seed, knobs, **place)]
    if target is not None:
        target = target if target_labels else target.unlabelled()
        _first(target, crop)
        parts.append(_stream(target, "target", target_batch_size or batch_size, seed, knobs, **place))
    if start_step >= steps:
        return iter(())
    return iterate(ZipMapDataset(parts).map(_merge), workers)


def _first(dataset, crop: tuple[int, int]) -> dict:
    """The first example, having checked that there is one and that it holds the crop: a wrong size should not wait for a compile."""
    _check_length(dataset)
    first = dataset[0]
    height, width = first["image"].shape[:2]
    check_crop(crop, height, width, first["name"])
    return first


def _stream(dataset, role: str, batch_size: int, seed: int, knobs: dict, *, steps: range, process_index: int, process_count: int):
    """This process's batches of one data set, for `steps`, as a random-access grain data set."""
    local = share(batch_size, process_count)
    # Source and target take different orders even when they are one data set.
    own_seed = int(np.random.SeedSequence([seed, 0 if role == "source" else 1]).generate_state(1)[0])
    elements = grain.MapDataset.source(dataset).seed(own_seed).shuffle().repeat()
    elements = elements.random_map(lambda example, rng: random_crop(rng, example, **knobs))

    def element(position: int) -> Batch:
        step, row = divmod(position, local)
        found = elements[steps[step] * batch_size + process_index * local + row]
        assert found is not None  # nothing filters elements
        return {f"{role}_{key}": value for key, value in found.items()}

    return grain.MapDataset.source(range(len(steps) * local)).map(element).batch(local)


def _merge(parts: tuple[Batch, ...]) -> Batch:
    return {key: value for part in parts for key, value in part.items()}


def iterate(batches: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """Read ahead in threads or worker processes, and shut them down whichever way the consumer ends."""
    # A grain element is a whole batch here, so a few in flight are plenty; its default of 500 would fill the memory.
    threads = 2 if workers else min(4, os.cpu_count() or 1)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    if workers:
        # grain reads absl flags, which only absl.app.run parses: without this, a script or a notebook fails at the first batch.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, worker_init_fn=functools.partial(_die_with_parent, os.getpid()))
    return _closing(stream)


def _closing(stream: grain.IterDataset) -> Iterator[Batch]:
    iterator = iter(stream)
    try:
        yield from iterator
    finally:
        iterator.close()


def _die_with_parent(parent: int, worker_index: int, worker_count: int) -> None:
    """Started in each worker: a trainer (process `parent`) that is killed outright cannot stop its workers, so they watch for its death."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def share(batch_size: int, process_count: int) -> int:
    """Rows of a global batch that each process reads. ConfigError when they do not divide."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} must be a positive multiple of the {process_count} processes: change data.batch_size")
    return batch_size // process_count


def _check_length(dataset) -> None:
    if len(dataset) == 0:
        raise DataError(f"{dataset!r} is empty, expected at least one example: check its folder, split and filters")
