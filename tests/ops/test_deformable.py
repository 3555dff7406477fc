"""Deformable attention against closed forms and torch's grid_sample, its gradient in both forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import deformable
from segjax.ops.deformable import deformable_attention

SHAPES = ((2, 3), (4, 5), (7, 1))


def drawn(seed=0, shapes=SHAPES, batch=2, queries=9, heads=2, points=3, dims=4):
    """Value, locations (a good part outside the maps), weights."""
    rng = np.random.default_rng(seed)
    area = sum(height * width for height, width in shapes)
    value = rng.normal(size=(batch, area, heads, dims))
    locations = rng.uniform(-0.6, 1.6, (batch, queries, heads, len(shapes), points, 2))
    weight = rng.normal(size=(batch, queries, heads, len(shapes), points))
    return tuple(x.astype(np.float32) for x in (value, locations, weight))


attend = jax.jit(deformable_attention, static_argnums=1)


def gradients(function, *arguments):
    return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(function(*x))), argnums=(0, 1, 2)))(*arguments)


def test_pixel_centres_edges_and_beyond():
    value = np.arange(1, 7, dtype=np.float32).reshape(1, 6, 1, 1)
    places = [((0.5 / 3, 0.25), 1.0), ((2.5 / 3, 0.75), 6.0), ((0.5, 0.5), 3.5), ((0.0, 0.25), 0.5), ((-0.5, 0.5), 0.0), ((1e6, -1e6), 0.0)]
    locations = np.array([place for place, _ in places], np.float32).reshape(1, -1, 1, 1, 1, 2)
    got = attend(value, ((2, 3),), locations, np.full((1, len(places), 1, 1, 1), 2, np.float32))
    np.testing.assert_allclose(np.asarray(got)[0, :, 0, 0], [2 * expected for _, expected in places], atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_torch_with_its_gradient(seed):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.models.mask2former.modeling_mask2former").multi_scale_deformable_attention
    arguments = drawn(seed)
    tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in arguments]
    expected = theirs(tensors[0], SHAPES, *tensors[1:])
    torch.sin(expected).sum().backward()
    got = attend(arguments[0], SHAPES, *arguments[1:])
    np.testing.assert_allclose(np.asarray(got).reshape(expected.shape), expected.detach(), atol=1e-5)
    ours = gradients(lambda value, *rest: deformable_attention(value, SHAPES, *rest), *arguments)
    for mine, tensor in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(mine, tensor.grad, atol=2e-5)


def test_the_gradient_without_a_scatter_is_the_same(monkeypatch):
    value, locations, weight = drawn(2)
    size = np.asarray([shape[::-1] for shape in SHAPES], np.float32)
    places = locations * size[:, None] - 0.5
    gradient = np.random.default_rng(0).normal(size=(2, 2, 9, 4)).astype(np.float32)

    @jax.jit
    def run(places, weight, gradient):
        parts, found = [deformable._steps(part) for part in (places[..., 0], places[..., 1], weight)], []
        for block in (4, 512):
            monkeypatch.setattr(deformable, "BLOCK", block)
            found.append(deformable._spread_as_products(SHAPES, *parts, gradient))
        return deformable._spread(SHAPES, *parts, gradient), found

    expected, found = jax.device_get(run(places, weight, gradient))
    assert float(np.abs(expected).max()) > 0.5
    for got in found:
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_memory_grows_with_the_queries_alone():
    """Temporary bytes stay below a few results, though every result is a sum of 4 * levels * points rows."""

    def temporary(queries):
        value, locations, weight = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in drawn(queries=queries, points=16, dims=32))
        call = jax.jit(lambda value, *rest: deformable_attention(value, SHAPES, *rest))
        return call.lower(value, locations, weight).compile().memory_analysis().temp_size_in_bytes

    result = 2 * 1024 * 2 * 32 * 4
    samples = 2 * 1024 * 2 * 3 * 16 * 4
    assert temporary(1024) < 8 * result + 8 * samples < 0.2 * 4 * 3 * 16 * result


def test_half_precision_values_are_summed_in_float32():
    value, locations, weight = drawn(3)
    half = value.astype(jnp.bfloat16)
    got = attend(half, SHAPES, locations, weight)
    assert got.dtype == jnp.bfloat16
    exact = attend(half.astype(np.float32), SHAPES, locations, weight)
    np.testing.assert_array_equal(got, np.asarray(exact).astype(jnp.bfloat16))


def test_maps_that_do_not_fit_are_told():
    value, locations, weight = drawn()
    with pytest.raises(ConfigError, match="33 values and 3 levels, expected 32"):
        deformable_attention(value, ((2, 3), (4, 5), (6, 1)), locations, weight)
