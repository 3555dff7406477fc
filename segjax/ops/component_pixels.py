"""The n-th pixels of masks and of components, and random ones, without lists of pixels: counts of rows give the row, its sum the column.

A pixel is row * W + column; pixels count row by row.
"""

import jax
import jax.numpy as jnp

from segjax.typing import Array, Key


def nth_true(mask: Array, n: Array) -> Array:
    """The pixel, row * W + column, of the n-th true one (from 0, row by row) of mask bool [B,H,W], for n int [B,N]: int32, -1 for none."""
    rows = jnp.sum(mask, 2, dtype=jnp.int32)
    row, rest = _nth_row(rows, n)
    line = jnp.take_along_axis(mask, row[..., None], 1)
    return _pixel(line, row, rest, (n >= 0) & (n < rows.sum(1)[:, None]))


def _nth_row(rows: Array, n: Array) -> tuple[Array, Array]:
    """(row that holds the n-th, its number within the row), of true pixels a row [...,H] for n [...,N]."""
    until = jnp.cumsum(rows, -1)
    row = jnp.sum(until[..., None, :] <= n[..., None], -1, dtype=jnp.int32)
    row = jnp.minimum(row, rows.shape[-1] - 1)
    return row, n - jnp.take_along_axis(until - rows, row, -1)


def _pixel(line: Array, row: Array, rest: Array, valid: Array) -> Array:
    """The rest-th true pixel of each line bool [...,W], as row * W + column."""
    column = jnp.argmax(jnp.cumsum(line, -1, dtype=jnp.int32) > rest[..., None], -1)
    return jnp.where(valid, row * line.shape[-1] + column, -1).astype(jnp.int32)


def random_pixels(key: Key, place: Array, places: int, count: int) -> tuple[Array, Array]:
    """(`count` different pixels of each place, every choice equally likely, int32 [B,M,count]; bool [B,M]: whether it has so many).

    place int32 [B,H,W] as of `Kept`, M = places. A pixel is row * W + column. key: one, or one for each image [B].
    """
    keys = key if key.ndim else jax.random.split(key, len(place))
    rows = rows_of(place, places)
    area = rows.sum(-1)
    enough = area >= count
    index = jax.vmap(lambda key, size: distinct(key, size, count))(keys, jnp.maximum(area, count))
    return pixels_at(place, rows, index), enough


def rows_of(place: Array, places: int) -> Array:
    """How many pixels of each place a row has: int32 [B,M,H]."""
    batch, height, _ = place.shape
    index = place * height + jnp.arange(height, dtype=jnp.int32)[:, None]
    count = lambda index: jnp.zeros(places * height, jnp.int32).at[index].add(1, mode="drop")
    return jax.vmap(count)(index.reshape(batch, -1)).reshape(batch, places, height)


def pixels_at(place: Array, rows: Array, index: Array) -> Array:
    """The pixels with these numbers in the row by row list of each place's: index int [B,M,N] -> row * W + column, -1 beyond its end."""
    batch, places, count = index.shape
    row, rest = _nth_row(rows, index)
    line = jnp.take_along_axis(place, row.reshape(batch, -1, 1), 1).reshape(batch, places, count, -1)
    own = line == jnp.arange(places, dtype=jnp.int32)[:, None, None]
    return _pixel(own, row, rest, index < rows.sum(-1)[..., None])


def distinct(key: Key, size: Array, count: int) -> Array:
    """`count` different numbers below each `size` int [...] (at least `count`), in random order: int32 [...,count]."""
    keys = jax.random.split(key, count)
    taken: list[Array] = []
    for n in range(count):
        number = jax.random.randint(keys[n], size.shape, 0, size - n)
        # the number-th of those that are left: each taken one that is not above moves it up by one
        for other in jnp.sort(jnp.stack(taken), 0) if taken else []:
            number = number + (number >= other)
        taken.append(number)
    return jnp.stack(taken, -1)


def eroded(place: Array, none: int) -> Array:
    """place int [B,H,W] with `none` wherever the 3x3 pixels around are not all of one place; the border becomes `none`."""
    inside = place[:, 1:-1, 1:-1]
    height, width = place.shape[1:]
    same = jnp.ones(inside.shape, bool)
    for down in range(3):
        for over in range(3):
            same &= place[:, down : height - 2 + down, over : width - 2 + over] == inside
    return jnp.pad(jnp.where(same, inside, none), ((0, 0), (1, 1), (1, 1)), constant_values=none)
