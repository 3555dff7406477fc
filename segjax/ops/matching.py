"""Hungarian matching of queries to targets on the device: exact, for all images and all prediction sets at once, in static shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segjax.typing import Array

LARGEST = 1e30
"""Costs are clipped to this magnitude, so that sums of them stay finite in float32."""


def match(cost: Array, valid: Array | None = None) -> Array:
    """The query of every target in the assignment of least total cost, int32 [...,K]; -1: the target is absent or got none.

    cost float [...,Q,K]; valid bool [...,K]: which targets are there (default: all). As many pairs are made as there are queries or present
    targets, whichever is less. NaN and infinities of either sign count as worse than any set of finite costs of that matrix, so they are
    chosen only where nothing else is left (scipy raises for NaN, or for a matrix without another assignment). No gradient.

    Shortest augmenting paths (Jonker and Volgenant 1987) as in scipy.optimize.linear_sum_assignment, in float32, begun with every target
    that is the first to want its cheapest query; so the total equals scipy's but for rounding, and of equal totals either may come.
    Each leading element is a problem of its own: the loops run until the last one is done.
    """
    cost = lax.stop_gradient(cost).astype(jnp.float32)
    valid = (
        jnp.ones(cost.shape[:-2] + cost.shape[-1:], bool) if valid is None else jnp.broadcast_to(valid, cost.shape[:-2] + cost.shape[-1:])
    )
    queries, targets = cost.shape[-2:]
    if not queries or not targets:
        return jnp.full(valid.shape, -1, jnp.int32)
    one = _few_targets if targets <= queries else _many_targets
    found = jax.vmap(one)(cost.reshape(-1, queries, targets), valid.reshape(-1, targets))
    return found.reshape(valid.shape)


def assigned(query: Array, queries: int) -> Array:
    """The target of every query, int32 [...,Q], -1 for none, of the queries of every target [...,K] (`match`)."""
    hit = query[..., None, :] == jnp.arange(queries)[:, None]
    return jnp.where(hit.any(-1), jnp.argmax(hit, -1), -1).astype(jnp.int32)


def _finite(cost: Array, use: Array) -> Array:
    """cost with every unusable value (NaN, infinite) replaced by one that outweighs all finite ones together; both [R,C]."""
    good = jnp.isfinite(cost) & use
    cost = jnp.clip(cost, -LARGEST, LARGEST)
    low, high = (reduce(jnp.where(good, cost, fill)) for reduce, fill in ((jnp.min, LARGEST), (jnp.max, -LARGEST)))
    spread = jnp.maximum(high - low, jnp.finfo(jnp.float32).tiny)
    worst = jnp.where(good.any(), high + min(cost.shape) * spread, 0.0)
    return jnp.where(good, cost, worst)


def _few_targets(cost: Array, valid: Array) -> Array:
    """cost [Q,K] with K <= Q."""
    return _paths(_finite(cost, valid[None]).T, valid)


def _many_targets(cost: Array, valid: Array) -> Array:
    """cost [Q,K] with K > Q: whichever of present targets and queries are fewer look for one of the others."""
    queries, targets = cost.shape
    cost = jnp.pad(_finite(cost, valid[None]), ((0, targets - queries), (0, 0)))
    there = jnp.arange(targets) < queries
    turned = jnp.sum(valid) > queries
    seekers, sought = jnp.where(turned, there, valid), jnp.where(turned, valid, there)
    found = _paths(jnp.where(sought[None], jnp.where(turned, cost, cost.T), jnp.inf), seekers)
    return jnp.where(turned, assigned(found, targets), found)


class _Search(NamedTuple):
    """The shortest paths from one row: distance [C] and row before [C] of every column, what has been scanned, the last row and column."""

    distance: Array
    before: Array
    rows: Array
    columns: Array
    row: Array
    column: Array
    length: Array


def _paths(cost: Array, wanted: Array) -> Array:
    """The column of each wanted row of cost [R,C], -1 for the others. inf: a column that is not there; enough others must be."""
    rows, columns = cost.shape
    cost = cost - jnp.min(cost, 1, keepdims=True)  # that of the cheapest is 0: a large constant costs no digits
    cheapest = jnp.argmin(cost, 1)
    first = jnp.full(columns, rows).at[jnp.where(wanted, cheapest, columns)].min(jnp.arange(rows), mode="drop")
    lucky = wanted & (first[cheapest] == jnp.arange(rows))
    start = (
        jnp.zeros(rows),  # dual of each row and of each column
        jnp.zeros(columns),
        jnp.where(lucky, cheapest, -1).astype(jnp.int32),  # the column of each row, the row of each column
        jnp.where(first < rows, first, -1).astype(jnp.int32),
    )
    waiting = lambda column_of: wanted & (column_of < 0)

    def augment(state: tuple[Array, ...]) -> tuple[Array, ...]:
        u, v, column_of, row_of = state
        open_rows = waiting(column_of)
        # under vmap a problem that is done comes along until the others are: it finds its path ended at once
        todo, begin = open_rows.any(), jnp.argmax(open_rows).astype(jnp.int32)

        def scan(now: _Search) -> _Search:
            length = now.length + cost[now.row] - u[now.row] - v
            closer = ~now.columns & (length < now.distance)
            distance = jnp.where(closer, length, now.distance)
            before = jnp.where(closer, now.row, now.before)
            reach = jnp.where(now.columns, jnp.inf, distance)
            nearest = jnp.min(reach)
            free = (reach == nearest) & (row_of < 0)
            column = jnp.where(free.any(), jnp.argmax(free), jnp.argmin(reach)).astype(jnp.int32)
            row = row_of[column]
            return _Search(
                distance,
                before,
                now.rows.at[now.row].set(True),
                now.columns.at[column].set(True),
                jnp.where(row < 0, now.row, row),
                jnp.where(row < 0, column, -1),
                nearest,
            )

        none = jnp.int32(-1)
        begun = _Search(
            jnp.full(columns, jnp.inf),
            jnp.full(columns, -1, jnp.int32),
            jnp.zeros(rows, bool),
            jnp.zeros(columns, bool),
            begin,
            none,
            jnp.float32(0),
        )
        end = lax.while_loop(lambda now: todo & (now.column < 0), scan, begun)
        at = jnp.where(column_of < 0, 0.0, end.distance[column_of])
        u = jnp.where(end.rows & todo, u + end.length - at, u)
        v = jnp.where(end.columns & todo, v - (end.length - end.distance), v)

        def step(walk: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            column, column_of, row_of = walk
            row = end.before[column]
            return column_of[row], column_of.at[row].set(column), row_of.at[column].set(row)

        last = jnp.where(todo, end.column, -1)
        _, column_of, row_of = lax.while_loop(lambda walk: walk[0] >= 0, step, (last, column_of, row_of))
        return u, v, column_of, row_of

    return lax.while_loop(lambda state: waiting(state[2]).any(), augment, start)[2]
