"""Batches for training, in one order that depends on nothing but the seed.

Training element i depends on (seed, i) only. The global batch of step s is elements s * B .. s * B + B - 1 and process p of P holds its
p-th contiguous block, so workers, hosts, devices and a restart at any step change who reads an element, never what it is.
"""

import functools
import inspect
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
from absl import flags

from segjax.data import crops, parallel
from segjax.data.robust import Ledger, Policy
from segjax.data.sampling import ClassSampling, Count, count_labels
from segjax.data.stream import Stream, open_stream
from segjax.errors import ConfigError

Batch = dict


def training_batches(source, target=None, *, seed: int, batch_size: int, steps: int, **options: Any) -> Iterator[Batch]:
    """The batches of `streams(source, target, ...)` in one call; options: what `streams` and `batches` take."""
    of_batches = {key: value for key, value in options.items() if key in inspect.signature(batches).parameters}
    of_streams = {key: value for key, value in options.items() if key not in of_batches}
    return batches(streams(source, target, seed=seed, **of_streams), batch_size=batch_size, steps=steps, **of_batches)


def streams(
    source,
    target=None,
    *,
    seed: int,
    crop: tuple[int, int],
    resize: tuple[int, int] | None = None,
    scale: tuple[float, float] = (1.0, 1.0),
    independent: bool = False,
    flip: bool = True,
    small: str = "pad",
    quality: Any = None,
    source_crops: Any = (),
    target_crops: Any = (),
    sampling: ClassSampling | None = None,
    target_labels: bool = False,
    part_ids: bool = False,
    broken: str = "raise",
    broken_share: float = 0.01,
) -> list[Stream]:
    """What the training elements of source and target are, checked; nothing but one example of each is read.

    crop .. small: `crops.CropRule`, for both roles. quality (`crops.Quality` or its fields) looks at labels, so it holds for the source.
    source_crops, target_crops: what differs in one role, a mapping of CropRule's fields. Several mappings make a batch of several kinds of
    crops, in exact shares and one size: DiGA's low and high resolution are ({"resize": (720, 1280)}, {"resize": (1052, 1914)}).
    sampling: how source records are drawn, default shuffled epochs without end. target_labels reads the target's labels (pseudo-labels),
    which are else never opened. part_ids adds `source_part`, `target_part` uint8 [b]: the part of a mixture that a row comes from.
    broken, broken_share: `robust.Policy`. ConfigError: what cannot be. DataError: empty set, unlabelled source, crop larger than the image.
    """
    policy = Policy(broken, broken_share)
    common = dict(crop=crop, resize=resize, scale=scale, independent=independent, flip=flip, small=small)
    shared: dict[str, Any] = dict(seed=seed, policy=policy, part_ids=part_ids)
    rules = crops.rules({**common, "quality": quality}, source_crops, "data.source_crops" if source_crops else "data")
    found = [open_stream("source", source, rules, sampling=sampling, **shared)]
    if target is not None:
        rules = crops.rules(common, target_crops, "data.target_crops" if target_crops else "data")
        target = target if target_labels else target.unlabelled()
        found.append(open_stream("target", target, rules, sampling=None, **shared))
    return found


def batches(
    opened: list[Stream],
    *,
    batch_size: int,
    steps: int,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    target_batch_size: int | None = None,
    ledger: Ledger | None = None,
    count: Count = count_labels,
) -> Iterator[Batch]:
    """Yield the batches of steps start_step .. steps - 1 as dicts of uint8 arrays.

    `source_image` [b,h,w,3], `source_label` [b,h,w], `target_image` [b,h,w,3], paired at random, and what the streams add. b is this
    process's share of the global batch_size (target_batch_size, default the same). workers: processes that read; 0 reads in threads of this
    one. ledger: the books of broken records (default: in memory). count: how class statistics are found.
    Closing or dropping the iterator stops the workers. ConfigError: sizes that do not divide. DataError: what the policy does not allow.
    """
    if workers < 0:
        raise ConfigError(f"data.workers={workers}: expected 0 (threads of this process) or a number of processes")
    plan = []
    for stream, size in zip(opened, (batch_size, target_batch_size or batch_size), strict=False):
        local = share(size, process_count)
        plan.append((stream, stream.orders(count), size, range(process_index * local, (process_index + 1) * local)))
    if start_step >= steps:
        return iter(())
    read = grain.MapDataset.source(range(start_step, steps)).map(functools.partial(_batch, plan))
    return _booked(iterate(read, workers), opened, Ledger() if ledger is None else ledger)


def _batch(plan: list[tuple], step: int) -> Batch:
    """This process's rows of one step, each crop written straight into its place. plan: (stream, orders, global batch size, rows)."""
    batch, broken = {}, []
    for stream, orders, size, rows in plan:
        arrays = stream.allocate(len(rows))
        for row, place in enumerate(rows):
            broken += stream.fill(orders, step * size + place, arrays, row)
        batch |= arrays
    return batch | {"broken": broken}


def _booked(read: Iterator[Batch], opened: list[Stream], ledger: Ledger) -> Iterator[Batch]:
    """The batches without their notes on broken records, which are booked as each batch is handed out, in the order of the steps."""
    by_role = {stream.role: stream for stream in opened}
    try:
        for batch in read:
            for record in batch.pop("broken"):
                stream = by_role[record.role]
                ledger.note(record, len(stream.dataset), stream.policy)
            yield batch
    finally:
        read.close()  # pyright: ignore[reportAttributeAccessIssue]  (a generator)


def iterate(elements: grain.MapDataset, workers: int) -> Iterator[Batch]:
    """Read ahead in threads or worker processes, and shut them down whichever way the consumer ends."""
    # A grain element is a whole batch here, so a few in flight are plenty; its default of 500 would fill the memory.
    threads = 2 if workers else min(4, parallel.cores())
    stream = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
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
