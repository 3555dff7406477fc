"""Hungarian matching against scipy's on random and degenerate costs, in batches, with absent targets and costs that are no numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from segjax.ops import matching
from segjax.runtime import mesh as meshes

match = jax.jit(matching.match)


def check(cost, valid, query):
    """query [N,K] is an assignment of scipy's total for each of cost [N,Q,K]."""
    for one, there, got in zip(np.asarray(cost, np.float64), valid, np.asarray(query), strict=True):
        rows, columns = linear_sum_assignment(one[:, there])
        best = one[:, there][rows, columns].sum()
        assert (got[~there] == -1).all()
        chosen = np.flatnonzero(got >= 0)
        assert len(set(got[chosen])) == len(chosen) == len(rows) and got.max() < one.shape[0]
        span = max(np.abs(one[:, there]).max(), 1e-6) if there.any() else 1
        np.testing.assert_allclose(one[got[chosen], chosen].sum(), best, rtol=0, atol=2e-6 * span * max(len(rows), 1))


def drawn(rng, count, shape, kind):
    cost = {
        "normal": lambda: rng.normal(size=(count, *shape)),
        "uniform": lambda: rng.random((count, *shape)) * rng.choice([1e-3, 1.0, 1e4], (count, 1, 1)),
        "ties": lambda: rng.integers(0, 3, (count, *shape)),
        "binary": lambda: rng.random((count, *shape)) < 0.05,
        "constant": lambda: np.full((count, *shape), 3.7) * rng.normal(size=(count, 1, 1)),
        "all want one": lambda: rng.random((count, *shape)) + np.arange(shape[0])[:, None] * 10,
        "low rank": lambda: rng.random((count, shape[0], 1)) * rng.random((count, 1, shape[1])),
        "huge": lambda: rng.normal(size=(count, *shape)) * 1e29,
        "offset": lambda: rng.random((count, *shape)) + 1e4 * rng.random((count, 1, shape[1])),
    }[kind]()
    return cost.astype(np.float32)


KINDS = ("normal", "uniform", "ties", "binary", "constant", "all want one", "low rank", "huge", "offset")


@pytest.mark.parametrize(("shape", "each"), [((100, 19), 40), ((20, 20), 40), ((7, 30), 40)])
def test_the_total_is_scipys(shape, each):
    """1,080 problems: 9 kinds of cost, some targets absent."""
    rng = np.random.default_rng(shape[1])
    cost = np.concatenate([drawn(rng, each, shape, kind) for kind in KINDS])
    valid = rng.random((len(cost), shape[1])) < rng.choice([0.1, 0.6, 1.0], (len(cost), 1))
    check(cost, valid, match(cost, valid))


def test_ten_sets_of_images_at_once():
    rng = np.random.default_rng(3)
    cost = rng.normal(size=(3, 2, 12, 5)).astype(np.float32)
    valid = np.broadcast_to(np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool), (3, 2, 5))
    got = match(cost, valid)
    assert got.shape == (3, 2, 5) and got.dtype == jnp.int32 and (np.asarray(got)[:, 1] == -1).all()
    check(cost.reshape(6, 12, 5), valid.reshape(6, 5), np.reshape(got, (6, 5)))
    np.testing.assert_array_equal(jax.vmap(match)(cost, valid), got)
    text = match.lower(cost, valid).as_text()
    assert "callback" not in text and "while" in text


def test_what_is_no_number_is_chosen_last():
    rng = np.random.default_rng(4)
    cost = rng.random((200, 9, 6)).astype(np.float32)
    bad = rng.random(cost.shape) < rng.choice([0.05, 0.5, 1.0], (200, 1, 1))
    cost[bad] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    cost[0] = np.nan
    got = np.asarray(match(cost))
    # scipy on the same with a price that outweighs everything
    check(np.where(bad | np.isnan(cost), 1e3, cost), np.ones((200, 6), bool), got)
    assert np.isfinite(cost[1:]).any() and sorted(got[0]) != [-1] * 6


def test_targets_of_queries():
    query = np.array([[2, -1, 0], [-1, -1, -1]])
    assert jax.jit(matching.assigned, static_argnums=1)(query, 4).tolist() == [[2, -1, 0, -1], [-1] * 4]


def test_nothing_to_match():
    assert match(np.zeros((2, 5, 0), np.float32)).shape == (2, 0)
    assert match(np.zeros((2, 0, 3), np.float32)).tolist() == [[-1] * 3] * 2


def test_no_gradient_and_any_sharding():
    cost = np.random.default_rng(5).normal(size=(8, 10, 4)).astype(np.float32)
    sharded = match(jax.device_put(cost, meshes.batch_sharding(meshes.make_mesh())))
    np.testing.assert_array_equal(sharded, match(cost))
    chosen = functools.partial(jnp.take_along_axis, axis=-2)
    total = lambda c: jnp.sum(chosen(c, matching.match(c)[..., None, :]))
    slope = jax.jit(jax.grad(total))(cost)
    assert float(slope.sum()) == 32 and set(np.unique(slope)) == {0.0, 1.0}
