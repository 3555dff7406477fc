"""Class views: how many of which pixels, never one twice, and the original's loss over slots of which many are empty."""

import functools

import jax
import numpy as np
import pytest

from segjax.ops.class_views import class_views
from segjax.ops.contrastive import supervised_contrastive
from segjax.ops.pixel_samples import labels_at
from segjax.runtime.mesh import batch_sharding, make_mesh

CLASSES = 5
draw = jax.jit(class_views, static_argnums=3, static_argnames=("views", "samples"))


def images():
    """Pixels of class 0 to 4 and how many of each are predicted wrongly; 255 elsewhere."""
    label, prediction = np.full((2, 20, 20), 255, np.uint8), np.zeros((2, 20, 20), np.uint8)
    counts = ([(60, 40), (40, 1), (30, 29), (8, 4), (0, 0)], [(0, 0), (9, 0), (11, 11), (0, 0), (0, 0)])
    for image, row in enumerate(counts):
        flat, predicted, at = label[image].reshape(-1), prediction[image].reshape(-1), 0
        for k, (count, wrong) in enumerate(row):
            flat[at : at + count] = k
            predicted[at : at + count] = k
            predicted[at : at + wrong] = (k + 1) % CLASSES
            at += count
    return label, prediction


@pytest.mark.parametrize(
    ("views", "samples", "n", "hard"),
    [
        (8, 1000, 8, {(0, 0): 4, (0, 1): 1, (0, 2): 7, (1, 1): 0, (1, 2): 8}),  # all that fit; 8 pixels are not more than 8 views
        (8, 28, 5, {(0, 0): 2, (0, 1): 1, (0, 2): 4, (1, 1): 0, (1, 2): 5}),  # 28 // 5 classes; an odd number has one easy more
        (10, 41, 10, {(0, 0): 5, (0, 1): 1, (0, 2): 9, (1, 2): 10}),
        (8, 4, 0, {}),  # more classes than samples: none, as in the original
    ],
)
def test_every_class_alike_and_half_of_it_hard(views, samples, n, hard):
    label, prediction = images()
    position, found = (np.asarray(x) for x in draw(jax.random.key(0), label, prediction, CLASSES, views=views, samples=samples))
    assert position.shape == found.shape == (2, CLASSES * views) and position.dtype == np.int32 and found.dtype == np.uint8
    assert position.min() >= 0 and position.max() < 400
    used = found != 255
    np.testing.assert_array_equal(np.asarray(jax.jit(labels_at)(label, position))[used], found[used])
    for image in range(2):
        for k in range(CLASSES):
            mine = position[image][found[image] == k]
            assert len(mine) == len(set(mine)) == (n if (image, k) in hard else 0)
            wrong = np.asarray(prediction)[image].reshape(-1)[mine] != k
            assert not len(mine) or wrong.sum() == hard[image, k]


def test_every_pixel_of_a_pool_is_drawn_as_often():
    label, prediction = images()
    many = jax.vmap(lambda key: class_views(key, label, prediction, CLASSES, views=8, samples=1000))
    position, found = (np.asarray(x)[:, 0] for x in jax.jit(many)(jax.random.split(jax.random.key(1), 3000)))
    often = np.bincount(position[found == 0], minlength=400) / 3000
    np.testing.assert_allclose(often[:40], 4 / 40, atol=0.022)  # 4 standard deviations; hard
    np.testing.assert_allclose(often[40:60], 4 / 20, atol=0.03)  # easy
    assert often[60:].sum() == 0


def test_a_sharded_batch_counts_the_classes_of_all_its_images():
    label, prediction = (np.tile(x, (4, 1, 1)) for x in images())
    expected = draw(jax.random.key(0), label, prediction, CLASSES, views=8, samples=100)
    assert np.sum(np.asarray(expected[1]) == 2) == 8 * 5  # 100 samples // 20 classes
    mesh = make_mesh(4, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put((label, prediction), batch_sharding(mesh))
        got = draw(jax.random.key(0), *placed, CLASSES, views=8, samples=100)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_originals_loss_over_slots(goldens):
    """Its 24 sets of 4 views of a class, laid where the draw from 24 images goes; most slots stay empty."""
    golden = np.load(goldens / "04c_contrastiveseg_s0.npz")
    feature, of_class = golden["in_feat"], golden["in_label"]
    temperature, base = (float(x) for x in golden["par"])
    classes, (images, views, dims) = int(of_class.max()) + 1, feature.shape
    label = np.full((images, 3, 4), 255, np.uint8)
    label[:, :2] = of_class[:, None, None]
    prediction = np.where(np.arange(12).reshape(3, 4) % 2, label, 0)
    drawn = draw(jax.random.key(0), label, prediction, classes, views=views, samples=views * images)
    position, found = jax.device_get(drawn)
    pixels = np.zeros((images, 12, dims), np.float32)
    for image in range(images):
        pixels[image, position[image][found[image] != 255]] = feature[image]

    keys = np.take_along_axis(pixels, position[..., None], 1).reshape(-1, dims)
    options = dict(num_classes=classes, temperature=temperature, base_temperature=base, form="negatives", itself=np.arange(len(keys)))
    total, count = jax.jit(functools.partial(supervised_contrastive, **options))(keys, keys, *[found.reshape(-1)] * 2)
    assert count == views * images and found.size == classes * views * images
    np.testing.assert_allclose(total / count, golden["out_loss"], atol=5e-5)
