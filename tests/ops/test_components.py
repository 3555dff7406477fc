"""Connected components of all classes at once against scipy, those that are kept and their random pixels against the original's numbers."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from segjax.ops import component_pixels, components
from segjax.runtime import mesh as meshes

first_pixels = jax.jit(components.components)


def by_scipy(label):
    """The first pixel of every pixel's component, class by class."""
    found = np.zeros(label.shape, np.int64)
    for k in np.unique(label):
        marks, count = ndimage.label(label == k)
        first = ndimage.minimum(np.arange(label.size).reshape(label.shape), marks, np.arange(1, count + 1))
        found[marks > 0] = np.asarray(first, np.int64)[marks[marks > 0] - 1]
    return found


def check(labels):
    for label in labels:
        np.testing.assert_array_equal(np.asarray(first_pixels(label[None]))[0], by_scipy(label))


def serpentine(size, turned=False):
    """One path of class 1 through the whole map, from side to side."""
    label = np.zeros((size, size), np.uint8)
    label[::2] = 1
    label[1::4, -1] = label[3::4, 0] = 1
    return np.ascontiguousarray(label.T) if turned else label


def spiral(size):
    label, ring = np.zeros((size, size), np.uint8), 0
    while ring < size // 2:
        label[ring, ring : size - ring] = label[ring : size - ring, size - 1 - ring] = 1
        label[size - 1 - ring, ring : size - ring] = label[ring + 2 : size - ring, ring] = 1
        if ring + 2 < size // 2:
            label[ring + 2, ring + 1] = 1
        ring += 2
    return label


def test_hard_maps_of_768_pixels():
    """Noise of 2 and of 19 classes and paths as long as can be: all three sizes of arrays, and the number of rounds."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, k, (768, 768)).astype(np.uint8) for k in (2, 19)]
    blocks = np.kron(rng.integers(0, 3, (96, 96)), np.ones((8, 8))).astype(np.uint8)
    check([*noise, serpentine(768), serpentine(768, True), spiral(768), blocks])


def test_camvid(real_data):
    """Every class of real label maps, also where its regions are torn."""
    paths = sorted((real_data / "camvid" / "trainannot").glob("*.png"))[::90]
    assert len(paths) >= 4
    check([np.asarray(Image.open(path).resize((768, 768), Image.Resampling.NEAREST)) for path in paths])


def test_images_of_a_batch_do_not_touch_and_one_device_is_eight():
    rng = np.random.default_rng(1)
    labels = [np.kron(rng.integers(0, 3, (6, 5)), np.ones((5, 8))).astype(np.uint8) for _ in range(5)]
    labels += [np.zeros((30, 40), np.uint8), rng.integers(0, 2, (30, 40)).astype(np.uint8), np.full((30, 40), 255, np.uint8)]
    spread = np.asarray(first_pixels(jax.device_put(np.stack(labels), meshes.batch_sharding(meshes.make_mesh()))))
    for label, one in zip(labels, spread, strict=True):
        np.testing.assert_array_equal(one, by_scipy(label))


@functools.partial(jax.jit, static_argnames=("min_area", "places"))
def kept_of(label, min_area, places):
    found = components.kept(label, min_area=min_area, num_classes=19, places=places)
    count = found.valid.shape[1]
    return found, component_pixels.eroded(found.place, count), component_pixels.rows_of(found.place, count)


@pytest.mark.parametrize("seed", [0, 1])
def test_kept_components_and_points_are_the_originals(goldens, seed):
    raw = np.load(goldens / f"09a_clouds_points_s{seed}.npz")
    threshold, count = (int(x) for x in raw["par"])
    found, inside, rows = jax.device_get(kept_of(raw["in_seg"], threshold, (None, 64)[seed]))  # 64: more places than components
    image, place = np.nonzero(np.asarray(found.valid))
    np.testing.assert_array_equal(image, raw["out_image"])
    np.testing.assert_array_equal(np.asarray(found.label)[image, place], raw["out_class"])
    np.testing.assert_array_equal(np.asarray(found.place)[image] == place[:, None, None], raw["out_mask"])
    np.testing.assert_array_equal(np.asarray(found.area)[image, place], raw["out_mask"].sum((1, 2)))
    np.testing.assert_array_equal(np.asarray(inside)[image] == place[:, None, None], raw["out_eroded"])
    index = np.zeros((*found.valid.shape, count), np.int32)
    index[image, place] = raw["rnd_index"]
    pixels = np.asarray(jax.jit(component_pixels.pixels_at)(found.place, rows, index))[image, place]
    np.testing.assert_array_equal(np.stack([pixels % 96, pixels // 96], -1), raw["out_points"])


def test_more_components_than_places_leave_the_largest(goldens):
    label = np.load(goldens / "09a_clouds_points_s0.npz")["in_seg"]
    few, wide = jax.device_get((kept_of(label, 60, 5)[0], kept_of(label, 130, 64)[0]))
    for b in range(2):
        area = np.unique(by_scipy(label[b])[label[b] < 19], return_counts=True)[1]
        assert sorted(few.area[b]) == sorted(np.sort(area)[-5:]) and few.valid.all()
        assert (np.diff(few.label[b]) >= 0).all()
        for place in range(5):
            assert (few.place[b] == place).sum() == few.area[b, place]
    assert wide.valid.shape == (2, 64) and wide.place.max() == 64 and not wide.valid[:, 46:].any()


def test_the_nth_true_pixel():
    mask = np.random.default_rng(2).random((2, 7, 9)) < 0.3
    where = [np.flatnonzero(one) for one in mask]
    got = jax.jit(component_pixels.nth_true)(mask, np.broadcast_to(np.arange(40), (2, 40)))
    for one, want in zip(got, where, strict=True):
        assert one.tolist() == [*want, *[-1] * (40 - len(want))]


def test_random_pixels_are_different_and_equally_likely():
    label = np.zeros((1, 4, 6), np.uint8)
    label[0, 1:3, 1:4] = 1
    place = np.where(label == 1, 1, 0).astype(np.int32)
    draw = jax.jit(jax.vmap(lambda key: component_pixels.random_pixels(key, place, 3, 5)))
    pixels, enough = draw(jax.random.split(jax.random.key(1), 3000))
    assert enough[0].tolist() == [[True, True, False]]
    own = {7, 8, 9, 13, 14, 15}
    assert all(len(set(one)) == 5 and set(one) <= own for one in np.asarray(pixels)[:, 0, 1].tolist())
    for place_of in range(5):  # each place in the list by itself, and what is left out
        _, counts = np.unique(np.asarray(pixels)[:, 0, 1, place_of], return_counts=True)
        assert stats.chisquare(counts).pvalue > 1e-3
    left = 66 - np.asarray(pixels)[:, 0, 1].sum(-1)
    assert stats.chisquare(np.unique(left, return_counts=True)[1]).pvalue > 1e-3
