"""Connected components of all classes of all images at once on the device, and those that are large enough in a fixed number of places.

Nodes are runs: stretches of one label within a row. Each begins joined to one above it; then the larger of two touching roots is hooked to
the smaller (a scatter-min) and pointers jump until they reach the roots, so that no link is lost and every round at least halves the roots
that have a neighbour: a logarithmic number of rounds also on noise and on serpentines. How many runs there are is data: the smallest arrays
that hold all of them are chosen at run time, under one trace; labels with few runs along columns and many along rows are turned.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.component_pixels import nth_true
from segjax.typing import Array

PARTS = (1 / 32, 1 / 8, 17 / 32, 1)
"""Runs that the arrays hold, as parts of the pixels. Label maps of streets have some 2 % as many runs as pixels, noise over 50 %."""
_TURNED = 1
"""The place in PARTS of the arrays for turned labels."""


def components(label: Array) -> Array:
    """The first pixel, row * W + column, of every pixel's component: int32 [B,H,W]. label int [B,H,W].

    A component is a largest set of pixels of one label (any value, 255 too) that are joined along rows and columns: scipy.ndimage.label of
    each label's mask, which numbers components in the order of these first pixels.
    """
    pixels = label.shape[1] * label.shape[2]
    sizes = [int(-(-pixels * part // 1)) for part in PARTS]
    along, across = (_run_count(label, axis) for axis in (2, 1))
    needed = sum((along > size).astype(jnp.int32) for size in sizes[:-1])
    turned = (needed > _TURNED) & (across <= sizes[_TURNED])
    across_runs = lambda label: _by_runs(sizes[_TURNED], label.swapaxes(1, 2), turned=True).swapaxes(1, 2)
    ways = [*(partial(_by_runs, size) for size in sizes), across_runs]
    return lax.switch(jnp.where(turned, len(sizes), needed), ways, label)


def _run_count(label: Array, axis: int) -> Array:
    """The number of runs along an axis, of the image of label [B,H,W] that has most."""
    length = label.shape[axis]
    changes = lax.slice_in_dim(label, 1, length, axis=axis) != lax.slice_in_dim(label, 0, length - 1, axis=axis)
    return label.shape[3 - axis] + jnp.sum(changes, (1, 2), dtype=jnp.int32).max()


def _begins(label: Array) -> Array:
    """Where a run begins, bool [B,H,W]."""
    return jnp.pad(label[:, :, 1:] != label[:, :, :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True)


def _by_runs(size: int, label: Array, turned: bool = False) -> Array:
    """`components` of images with at most `size` runs. turned: rows and columns are exchanged; named by the pixels before."""
    batch, height, width = label.shape
    change = _begins(label)
    run = _counted(change)
    before = jnp.cumsum(run[:, :, -1], 1)
    run = (run + (before - run[:, :, -1])[:, :, None] - 1).reshape(batch, -1)
    label, pixels = label.reshape(batch, -1), height * width
    begin = _least(size, run, jnp.arange(pixels, dtype=jnp.int32)[None], pixels)
    own, here = jnp.arange(size, dtype=jnp.int32), jnp.minimum(begin, pixels - 1)

    def neighbour(step: int) -> Array:
        """The run `step` pixels from where each begins, or itself if there is none or it has another label."""
        there = jnp.clip(here + step, 0, pixels - 1)
        inside = (here + step >= 0) & (here + step < pixels)
        return jnp.where(inside & (_at(label, there) == _at(label, here)), _at(run, there), own)

    # two runs that touch do so in the column where one of them begins, so a run has a neighbour above and one below to look for there
    parent = _united(neighbour(-width), neighbour(width))
    if turned:
        begin = _least(size, parent, begin % width * height + begin // width, pixels)
    return _at(_at(begin, parent), run).reshape(batch, height, width)


def _at(x: Array, index: Array) -> Array:
    """x [B,N] at index [B,M]."""
    return jnp.take_along_axis(x, index, 1, mode="promise_in_bounds")


def _least(size: int, where: Array, value: Array, start: int) -> Array:
    """The smallest value [B or 1,M] that goes to each of `size` places, [B,size]; `start` where none goes. where [B,M], beyond: nowhere."""
    least = lambda where, value: jnp.full(size, start, jnp.int32).at[where].min(value, mode="drop")
    return jax.vmap(least)(where, jnp.broadcast_to(value, where.shape))


def _counted(change: Array) -> Array:
    """How many there are up to each pixel of its row, int32 [B,H,W]."""

    def columns(change: Array) -> Array:  # XLA's CPU compiler runs a cumulative sum as log W passes
        step = lambda count, here: (count + here,) * 2
        return jnp.moveaxis(lax.scan(step, jnp.zeros(change.shape[:2], jnp.int32), jnp.moveaxis(change, 2, 0))[1], 0, 2)

    return lax.platform_dependent(change.astype(jnp.int32), cpu=columns, default=lambda change: jnp.cumsum(change, 2))


def _united(parent: Array, below: Array) -> Array:
    """The smallest node that each node is joined to, after joining each to `below` [B,N]. parent [B,N]: begun, never larger than the node.

    All images go on until the last one is done: under a vmap every step would also choose between old and new for each.
    """

    def rooted(parent: Array) -> Array:
        moved = lambda state: jnp.any(state[0] != state[1])
        return lax.while_loop(moved, lambda state: (state[1], _at(state[1], state[1])), (parent, _at(parent, parent)))[1]

    def unite(state: tuple[Array, Array]) -> tuple[Array, Array]:
        parent, other = state
        hooked = jax.vmap(lambda parent, high, low: parent.at[high].min(low))
        parent = rooted(hooked(parent, jnp.maximum(parent, other), jnp.minimum(parent, other)))
        return parent, _at(parent, below)

    parent = rooted(parent)
    return lax.while_loop(lambda state: jnp.any(state[0] != state[1]), unite, (parent, _at(parent, below)))[0]


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
