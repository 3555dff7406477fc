"""Sampled pixels: the same numbers as the full-size map has there, and classes as often as promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax.errors import ConfigError
from segjax.ops import pixel_samples as ops
from segjax.ops.resize import bilinear
from segjax.runtime.mesh import batch_sharding, make_mesh


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read_full_map(features, position, size, align_corners):
    full = bilinear(features, size, align_corners)
    return jnp.take_along_axis(full.reshape(len(full), -1, full.shape[-1]), position[..., None], 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 5, 7, 3), (33, 49)), ((1, 9, 8, 4), (9, 16)), ((2, 6, 6, 2), (6, 6)), ((1, 1, 4, 2), (5, 9)), ((1, 20, 30, 2), (7, 11))],
)
def test_the_full_size_map_at_positions_without_making_it(shape, size, align_corners):
    """Larger, one axis alone, none, one pixel high, smaller; every position once and some of them twice."""
    features, pixels = drawn(shape), size[0] * size[1]
    position = np.stack([np.concatenate([np.arange(pixels)[::step], np.arange(9)]) for step in (1, -1)[: shape[0]]])
    weight = drawn((*position.shape, shape[-1]), seed=1)

    def loss(read, features):
        found = read(features, position, size, align_corners)
        return jnp.sum(found * weight), found

    forms = [jax.value_and_grad(functools.partial(loss, read), has_aux=True) for read in (ops.at_positions, read_full_map)]
    ((_, ours), slope), ((_, theirs), expected) = jax.jit(lambda features: [form(features) for form in forms])(features)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(slope, expected, atol=1e-5)


def test_reading_needs_memory_for_samples_alone():
    features, position = jax.ShapeDtypeStruct((1, 33, 65, 19), jnp.float32), jax.ShapeDtypeStruct((1, 100), jnp.int32)
    read = jax.jit(functools.partial(ops.at_positions, size=(256, 512))).lower(features, position).compile()
    assert read.memory_analysis().temp_size_in_bytes < 20 * 100 * 19 * 4  # the full map has 1300 times as many numbers


def test_low_precision_maps_stay_what_they_are():
    features, position = drawn((1, 4, 4, 2)).astype(jnp.bfloat16), np.arange(10)[None]
    both = jax.jit(lambda *x: (ops.at_positions(*x, (8, 8)), read_full_map(*x, (8, 8), False)))
    found, expected = both(features, position)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_map_is_refused():
    with pytest.raises(ConfigError, match=r"features int32\[1, 4, 4, 2\] at positions \[1, 3\]"):
        ops.at_positions(np.zeros((1, 4, 4, 2), np.int32), np.zeros((1, 3), np.int32), (8, 8))
    with pytest.raises(ConfigError, match=r"at positions \[2, 3\]"):
        ops.at_positions(np.zeros((1, 4, 4, 2), np.float32), np.zeros((2, 3), np.int32), (8, 8))


def test_uniform_positions_reach_every_pixel_and_differ_from_image_to_image():
    position = np.asarray(jax.jit(ops.uniform_positions, static_argnums=(1, 2, 3))(jax.random.key(0), 2, 12, 6000))
    assert position.shape == (2, 6000) and position.dtype == np.int32 and (position[0] != position[1]).any()
    for row in position:
        np.testing.assert_allclose(np.bincount(row, minlength=12) / 6000, 1 / 12, atol=0.015)  # 4 standard deviations


def test_balanced_positions_draw_classes_and_their_pixels_alike():
    label = np.full((3, 10, 12), 255, np.uint8)
    label[0, :8], label[0, 8, :3], label[0, 8, 3:5] = 0, 2, 7  # 96, 3 and 2 pixels; 7 is no class of five
    label[1, 0, 0] = 4  # one pixel alone
    position = np.asarray(jax.jit(ops.balanced_positions, static_argnums=(2, 3))(jax.random.key(1), label, 8000, 5))
    assert position.shape == (3, 8000) and position.dtype == np.int32
    often = np.bincount(position[0], minlength=120) / 8000
    np.testing.assert_allclose(often[:96], 0.5 / 96, atol=0.0033)  # 4 standard deviations
    np.testing.assert_allclose(often[96:99], 0.5 / 3, atol=0.017)
    assert often[99:].sum() == 0 and (position[1] == 0).all()
    assert len(np.unique(position[2])) > 100 and position[2].max() < 120  # nothing but ignored pixels: any of them
    found = np.asarray(jax.jit(ops.labels_at)(label, position))
    assert found.dtype == np.uint8 and set(found[0]) == {0, 2} and set(found[1]) == {4} and set(found[2]) == {255}


def test_a_large_image_keeps_single_pixels():
    """A lone pixel of class 1 after two million of class 0 is still half of the draws."""
    label = np.zeros((1, 1024, 2048), np.uint8)
    label[0, -1, -1] = 1
    position = np.asarray(jax.jit(ops.balanced_positions, static_argnums=(2, 3))(jax.random.key(0), label, 4000, 19))
    assert abs(np.mean(position == 1024 * 2048 - 1) - 0.5) < 0.032  # 4 standard deviations
    assert len(np.unique(position)) > 1900  # and the others are not a coarse grid


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_sharded_batch_samples_what_one_device_does(fsdp):
    label = np.random.default_rng(0).integers(0, 6, (8, 12, 16)).astype(np.uint8)
    features = drawn((8, 6, 8, 3))

    def sample(features, label):
        position = ops.balanced_positions(jax.random.key(3), label, 20, 5)
        read = lambda x: jnp.sum(ops.at_positions(x, position, label.shape[1:]) ** 2)
        return position, ops.labels_at(label, position), *jax.value_and_grad(read)(features)

    mesh = make_mesh(8 // fsdp, fsdp)
    rows = batch_sharding(mesh)
    with jax.set_mesh(mesh):
        compiled = jax.jit(sample, out_shardings=(rows, rows, NamedSharding(mesh, PartitionSpec()), rows))
        compiled = compiled.lower(*(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in (features, label))).compile()
        got = compiled(jax.device_put(features, rows), jax.device_put(label, rows))
    assert "all-gather" not in compiled.as_text()  # every device reads its own images
    expected = jax.jit(sample)(features, label)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_allclose(got[2], expected[2], rtol=1e-6)
    np.testing.assert_allclose(got[3], expected[3], rtol=1e-6)
