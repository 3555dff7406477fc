"""Connected components of all classes of all images at once on the device, and those that are large enough in a fixed number of places.

Nodes are runs: stretches of one label within a row. Runs that touch from row to row are joined by hooking the larger of two roots to the
smaller (a scatter-min) and jumping pointers, which takes a logarithmic number of rounds also on noise and on serpentines. How many runs
there are is data: the smallest arrays that hold all of them are chosen at run time, under one trace.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.component_pixels import nth_true
from segjax.typing import Array

PARTS = (32, 8)
"""Runs that the small arrays hold, as a part of the pixels. Label maps of streets have some 2 % as many runs as pixels, noise over 50 %."""


def components(label: Array) -> Array:
    """The first pixel, row * W + column, of every pixel's component: int32 [B,H,W]. label int [B,H,W].

    A component is a largest set of pixels of one label (any value, 255 too) that are joined along rows and columns: scipy.ndimage.label of
    each label's mask, which numbers components in the order of these first pixels.
    """
    batch, height, width = label.shape
    change = jnp.concatenate([jnp.ones((batch, height, 1), bool), label[:, :, 1:] != label[:, :, :-1]], 2)
    run = _counted(change)
    before = jnp.cumsum(run[:, :, -1], 1)
    run = run + (before - run[:, :, -1])[:, :, None] - 1
    sizes = sorted({-(-height * width // part) for part in PARTS})
    chosen = sum((before[:, -1].max() > size).astype(jnp.int32) for size in sizes)
    ways = [*(partial(_by_runs, size) for size in sizes), _by_pixels]
    return lax.switch(chosen, [jax.vmap(way) for way in ways], label, change, run)


def _counted(change: Array) -> Array:
    """How many there are up to each pixel of its row, int32 [B,H,W]."""

    def columns(change: Array) -> Array:  # XLA's CPU compiler runs a cumulative sum as log W passes
        step = lambda count, here: (count + here,) * 2
        return jnp.moveaxis(lax.scan(step, jnp.zeros(change.shape[:2], jnp.int32), jnp.moveaxis(change, 2, 0))[1], 0, 2)

    return lax.platform_dependent(change.astype(jnp.int32), cpu=columns, default=lambda change: jnp.cumsum(change, 2))


def _by_runs(size: int, label: Array, change: Array, run: Array) -> Array:
    """`components` of one image with at most `size` runs. change bool [H,W]: where a run begins; run int32 [H,W]: the number of each's."""
    width = label.shape[1]
    begin = _begins(size, change, run)
    label, run = label.reshape(-1), run.reshape(-1)
    own = jnp.arange(size, dtype=jnp.int32)
    # two runs that touch do so in the column where one of them begins, so a run has a neighbour above and one below to look for there
    above, below = (_neighbour(label, run, begin, own, step) for step in (-width, width))
    parent = _united(jnp.minimum(own, above), jnp.concatenate([own, own]), jnp.concatenate([above, below]))
    return begin[parent][run].reshape(-1, width)


def _by_pixels(label: Array, change: Array, run: Array) -> Array:
    """The same with any number of runs: a run is called by its first pixel."""
    start = _begins(label.size, change, run)[run]
    touching = (label[1:] == label[:-1]) & (change[1:] | change[:-1])
    above, below = (jnp.where(touching, x, 0).reshape(-1) for x in (start[:-1], start[1:]))
    parent = _united(start.reshape(-1).at[below].min(above), above, below)
    return parent[start]


def _begins(size: int, change: Array, run: Array) -> Array:
    """The first pixel of every run, int32 [size]; the number of pixels where there is no run."""
    where = jnp.where(change, run, size).reshape(-1)
    return jnp.full(size, run.size, jnp.int32).at[where].set(jnp.arange(run.size, dtype=jnp.int32), mode="drop", unique_indices=True)


def _united(parent: Array, one: Array, other: Array) -> Array:
    """The smallest node that each node is joined to, after joining one [E] to other [E]. parent [N]: begun, never larger than the node."""

    def jumped(parent: Array) -> Array:
        parent = parent[parent]
        return parent[parent]

    def unite(state: tuple[Array, Array]) -> tuple[Array, Array]:
        parent, _ = state
        a, b = parent[one], parent[other]
        parent = parent.at[jnp.maximum(a, b)].min(jnp.minimum(a, b))
        return jumped(parent), jnp.any(a != b)

    return lax.while_loop(lambda state: state[1], unite, (jumped(parent), jnp.bool_(True)))[0]


def _neighbour(label: Array, run: Array, begin: Array, own: Array, step: int) -> Array:
    """The run `step` pixels from where each begins, or itself if there is none or it has another label."""
    there = begin + step
    inside = (begin < label.size) & (there >= 0) & (there < label.size)
    there = jnp.clip(there, 0, label.size - 1)
    return jnp.where(inside & (label[there] == label[jnp.minimum(begin, label.size - 1)]), run[there], own)


class Kept(NamedTuple):
    """The components that were kept, in M places in order of their labels, then of their first pixels; empty places are last.

    place: int32 [B,H,W], the place of each pixel's component, M for none. label, area: int32 [B,M]; valid: bool [B,M].
    """

    place: Array
    label: Array
    area: Array
    valid: Array


def largest_possible(size: tuple[int, int], min_area: int) -> int:
    """How many components of more than `min_area` pixels an image of `size` can have."""
    return max(1, size[0] * size[1] // (min_area + 1))


def kept(label: Array, *, min_area: int, num_classes: int, places: int | None = None) -> Kept:
    """The components of more than `min_area` pixels of labels 0..num_classes-1 in label int [B,H,W].

    places: M, by default as many as there can be; if an image has more than that, the largest ones (of equal ones the first).
    """
    batch, height, width = label.shape
    most = largest_possible((height, width), min_area)
    root = components(label)
    flat = root.reshape(batch, -1)
    area = jax.vmap(lambda root: jnp.zeros(height * width, jnp.int32).at[root].add(1))(flat)
    known = (label >= 0) & (label < num_classes)
    large = (area.reshape(root.shape) > min_area) & known  # areas are 0 but at first pixels
    first = nth_true(large, jnp.broadcast_to(jnp.arange(most), (batch, most)))
    valid = first >= 0
    take = lambda x, index: jnp.take_along_axis(x.reshape(batch, -1).astype(jnp.int32), jnp.maximum(index, 0), 1)
    if places is not None and places < most:
        order = jnp.argsort(jnp.where(valid, -take(area, first), 1), 1, stable=True)[:, :places]
        first, valid = (jnp.take_along_axis(x, order, 1) for x in (first, valid))
        most = places
    key = jnp.where(valid, take(label, first), num_classes)
    order = jnp.lexsort((first, key), axis=1)
    first, valid = (jnp.take_along_axis(x, order, 1) for x in (first, valid))
    number = jnp.broadcast_to(jnp.arange(most, dtype=jnp.int32), first.shape)
    where = jnp.where(valid, first, height * width)
    put = lambda where, number: jnp.full(height * width, most, jnp.int32).at[where].set(number, mode="drop")
    place = jnp.take_along_axis(jax.vmap(put)(where, number), flat, 1).reshape(root.shape)
    there = lambda x: jnp.where(valid, take(x, first), 0)
    filled = (0, 0) if places is None else (0, max(0, places - most))
    found: Any = (jnp.pad(x, ((0, 0), filled)) for x in (there(label), there(area), valid))
    return Kept(jnp.where(place == most, most + filled[1], place), *found)
