"""Maps at points against torch's grid_sample and closed forms, their gradient in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import point_samples
from segjax.ops.point_samples import at_channel_points, at_shared_points

at_points = jax.jit(point_samples.at_points)


def drawn(seed=0, maps=3, size=(5, 7), points=40):
    """Maps [N,h,w] and points [N,P,2], some of them outside."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(maps, *size)).astype(np.float32), rng.uniform(-0.3, 1.3, (maps, points, 2)).astype(np.float32)


def test_centres_edges_and_beyond():
    maps = np.arange(1, 7, dtype=np.float32).reshape(1, 2, 3)
    places = [((0.5 / 3, 0.25), 1.0), ((2.5 / 3, 0.75), 6.0), ((0.5, 0.5), 3.5), ((0.0, 0.25), 0.5), ((-0.5, 0.5), 0.0), ((9.0, -9.0), 0.0)]
    points = np.array([place for place, _ in places], np.float32)[None]
    np.testing.assert_allclose(np.asarray(at_points(maps, points))[0], [value for _, value in places], atol=1e-6)


def test_the_three_ways_agree():
    maps, points = drawn()
    want = at_points(maps, points)
    np.testing.assert_allclose(jax.jit(at_channel_points)(maps.transpose(1, 2, 0)[None], points[None])[0], want, atol=1e-6)
    masks = maps > 0
    shared = jax.jit(at_shared_points)(masks[..., None], points)
    np.testing.assert_allclose(shared[..., 0], at_points(masks.astype(np.float32), points), atol=1e-6)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    maps, points = drawn(1)
    grid = torch.from_numpy(2 * points - 1)[:, :, None]
    want = torch.nn.functional.grid_sample(torch.from_numpy(maps)[:, None], grid, align_corners=False)[:, 0, :, 0]
    np.testing.assert_allclose(at_points(maps, points), want, atol=2e-6)


def test_the_gradient_is_the_transpose_and_needs_no_scatter(monkeypatch):
    maps, points = drawn(2)
    slope = np.random.default_rng(3).normal(size=points.shape[:2]).astype(np.float32)
    loss = lambda read: jax.jit(jax.grad(lambda maps, points: jnp.sum(read(maps, points) * slope), (0, 1)))(maps, points)
    got, none = loss(point_samples.at_points)
    want, _ = loss(point_samples.at_points.fun)  # autodiff of the plain gathers
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert not none.any() and np.abs(got).max() > 0.5
    for block in (16, 64):
        monkeypatch.setattr(point_samples, "BLOCK", block)
        np.testing.assert_allclose(jax.jit(lambda *x: point_samples._spread_as_products((5, 7), *x))(points, slope), got, atol=1e-5)
