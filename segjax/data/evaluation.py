"""A whole data set once, in batches of fixed shapes, whatever sizes its images have: few shapes, so few compilations."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Container, Iterator

import grain
import numpy as np

from segjax.data.pipeline import Batch, iterate, share
from segjax.data.transforms import Size, resize_image
from segjax.errors import DataError
from segjax.typing import IGNORE

MAX_SHAPES = 8
"""Distinct shapes that an evaluation compiles for, before images are padded to common ones."""

_READERS = 8  # threads that read headers: a network disk answers many at once


@dataclasses.dataclass(frozen=True)
class Group:
    """Examples that share one canvas (height, width), in the data set's order. exact: each of them has the canvas's size."""

    canvas: tuple[int, int]
    exact: bool
    indices: tuple[int, ...]


def evaluation_batches(
    dataset,
    *,
    batch_size: int,
    size: Size | None = None,
    only: Container[int] | None = None,
    max_shapes: int = MAX_SHAPES,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yield every example once: {"image" uint8 [b,h,w,3], "label" uint8 [b,H,W], "size" int32 [b,2], "index" int64 [b], "name" list[str],
    "canvas" (H,W), "exact" bool}.

    size: (height, width) that images alone are resized to, or the length of their shorter edge; labels keep their own, so that scores are
    counted on true pixels. "label" is absent from an unlabelled set. A batch holds examples of one group (`groups`); "size" has each
    example's own. Where they are not the canvas's ("exact" False) the label is filled up to it with 255 and, unless `size` is a pair, the
    image by repeating its last row and column (before the shorter edge of the canvas is resized). The last batch of a group is filled up
    with copies whose label is 255, name "" and index -1. only: batches without any of these examples are left out, and the others stay what
    they are (work that was interrupted goes on with equal batches). b is this process's share; every process yields the same shapes in the
    same order. DataError: empty set, a label whose size is not its image's in a padded group.
    """
    local = share(batch_size, process_count)
    plan = [
        (group, group.indices[start : start + batch_size])
        for group in groups(dataset, max_shapes=max_shapes)
        for start in range(0, len(group.indices), batch_size)
        if only is None or any(index in only for index in group.indices[start : start + batch_size])
    ]
    rows = slice(process_index * local, (process_index + 1) * local)

    def batch(step: int) -> Batch:
        group, chosen = plan[step]
        # Copies keep the shape where a group ends: the network wants full batches.
        filled = (*chosen, *[-1] * (batch_size - len(chosen)))[rows]
        return _batch(dataset, group, filled, chosen[-1], size)

    return iterate(grain.MapDataset.source(range(len(plan))).map(batch), 0)


def groups(dataset, *, max_shapes: int = MAX_SHAPES) -> list[Group]:
    """The examples by image size, in order of first appearance: exact sizes when there are at most `max_shapes`.

    Beyond that, sizes are rounded up to the smallest power of two (from 32 pixels) that leaves at most `max_shapes` canvases. Sizes come
    from `dataset.image_size`, so every process finds the same groups. DataError: empty set.
    """
    if len(dataset) == 0:
        raise DataError(f"{dataset!r} is empty, expected at least one example: check its folder, split and filters")
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        sizes = list(pool.map(dataset.image_size, range(len(dataset))))
    found, step = _by_canvas(sizes, 1), 32
    while len(found) > max(max_shapes, 1):
        found, step = _by_canvas(sizes, step), 2 * step
    return [Group(canvas, all(sizes[i] == canvas for i in members), tuple(members)) for canvas, members in found.items()]


def _by_canvas(sizes: list[tuple[int, int]], step: int) -> dict[tuple[int, int], list[int]]:
    found = collections.defaultdict(list)
    for index, (height, width) in enumerate(sizes):
        found[-(-height // step) * step, -(-width // step) * step].append(index)
    return found


def _batch(dataset, group: Group, filled: tuple[int, ...], spare: int, size: Size | None) -> Batch:
    loaded = {index: dataset[spare if index < 0 else index] for index in dict.fromkeys(filled)}
    examples = [loaded[index] for index in filled]
    images = [example["image"] for example in examples]
    labels = [example["label"] for example in examples] if "label" in examples[0] else []
    own = [array.shape[:2] for array in labels or images]
    batch: Batch = {
        "name": [example["name"] if index >= 0 else "" for example, index in zip(examples, filled, strict=True)],
        "index": np.asarray(filled, np.int64),
        "size": np.asarray(own, np.int32),
    }
    if not group.exact:
        for image, example, shape in zip(images, examples, own, strict=True):
            if image.shape[:2] != shape:
                (a, b), (c, d) = image.shape[:2], shape
                name = example["name"]
                raise DataError(f"label of {name} is {d}x{c} but its image is {b}x{a}: set data.resize to bring both to one size")
        labels = [_pad(label, group.canvas, IGNORE) for label in labels]
    if not group.exact and not isinstance(size, tuple):
        images = [_pad(image, group.canvas) for image in images]
    if size:
        images = [resize_image(image, size) for image in images]
    batch["image"] = _stack(images, examples, "image")
    if labels:
        batch["label"] = _stack(labels, examples, "label")
        batch["label"][batch["index"] < 0] = IGNORE
    batch |= {"canvas": batch["label"].shape[1:] if "label" in batch else group.canvas, "exact": group.exact}
    return batch


def _pad(pixels: np.ndarray, canvas: tuple[int, int], value: int | None = None) -> np.ndarray:
    """Filled up below and to the right with `value`, or with the last row and column."""
    margin = [(0, canvas[0] - pixels.shape[0]), (0, canvas[1] - pixels.shape[1]), (0, 0)][: pixels.ndim]
    return np.pad(pixels, margin, mode="edge") if value is None else np.pad(pixels, margin, constant_values=value)


def _stack(arrays: list[np.ndarray], examples: list[dict], what: str) -> np.ndarray:
    for array, example in zip(arrays, examples, strict=True):
        if array.shape != arrays[0].shape:
            (a, b), (c, d) = arrays[0].shape[:2], array.shape[:2]
            raise DataError(
                f"{what} of {example['name']} is {d}x{c} but {examples[0]['name']} is {b}x{a}, their images being of one size: "
                "set data.resize or batch_size=1"
            )
    return np.stack(arrays)
