"""Centroids against DiGA's own self-training block and offline pass, and against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import consensus, prototypes
from segjax.ops.resize import bilinear

CLASSES = 19
image_means = jax.jit(prototypes.image_means, static_argnums=2, static_argnames="min_pixels")
move = jax.jit(prototypes.move)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_self_training_block(goldens, seed):
    z = np.load(goldens / f"05c_diga_selftrain_s{seed}.npz")
    size = z["in_offline"].shape[1:]

    @jax.jit
    def block(centroids, momenta):
        features = nhwc(z["in_feat_t"]), nhwc(z["in_feat_s"])
        weights = prototypes.centroid_weights(features[0], centroids)
        closest = prototypes.nearest_centroid(features[0], centroids, size, chunks=4)
        pseudo = consensus.consensus(z["in_offline"], closest)
        means = [
            prototypes.image_means(feature, prototypes.predicted_labels(logits, label), CLASSES)
            for feature, logits, label in zip(
                features, (nhwc(z["in_logit_t"]), nhwc(z["in_logit_s"])), (pseudo, z["in_label_s"]), strict=True
            )
        ]
        mean, counted = (jnp.concatenate(parts) for parts in zip(*means, strict=True))
        return weights, closest, pseudo, mean, counted, [prototypes.move(centroids, mean, counted, m) for m in momenta]

    weights, closest, pseudo, mean, counted, moved = block(z["in_centroids"], [1e-4, z["par_mom2"]])
    np.testing.assert_allclose(weights, nhwc(z["out_weight_lowres"]), atol=5e-6)
    stable = z["aux_stable"]
    assert stable.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(closest)[stable], z["out_nearest"][stable])
    np.testing.assert_array_equal(np.asarray(pseudo)[stable], z["out_pseudo"][stable])
    image, found = np.nonzero(np.asarray(counted))
    np.testing.assert_array_equal(found, z["out_upd_ids"])
    assert (image < len(z["in_feat_t"])).sum() == z["out_upd_n_target"]
    np.testing.assert_allclose(np.asarray(mean)[image, found], z["out_upd_vec"], atol=2e-5)
    for centroids, want in zip(moved, ("out_centroids", "out_centroids_mom2"), strict=True):
        np.testing.assert_allclose(centroids, z[want], atol=2e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_offline_pass(goldens, seed):
    z = np.load(goldens / f"05d_diga_offline_s{seed}.npz")
    mean, counted = image_means(nhwc(z["in_feat"]), np.asarray(jax.jit(prototypes.predicted_labels)(nhwc(z["in_logit"]))), CLASSES)
    image, found = np.nonzero(np.asarray(counted))
    np.testing.assert_array_equal(found, z["out_ids"])
    np.testing.assert_allclose(np.asarray(mean)[image, found], z["out_vec"], atol=2e-5)
    centroids, number = jax.jit(prototypes.accumulate)(z["in_centroids"], z["in_num"], mean, counted)
    np.testing.assert_allclose(centroids, z["out_centroids"], atol=2e-5)
    np.testing.assert_allclose(number, z["out_num"], atol=2e-2)


def test_accumulate_is_the_mean_until_the_cap():
    rng = np.random.default_rng(0)
    means, counted = rng.normal(size=(9, 3, 4)).astype(np.float32), rng.random((9, 3)) < 0.6
    counted[:, 2] = False
    run = jax.jit(prototypes.accumulate, static_argnames="cap")
    start = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    centroids, number = run(*start, means, counted)
    np.testing.assert_array_equal(number, counted.sum(0))
    want = np.stack([means[counted[:, k], k].mean(0) if counted[:, k].any() else np.zeros(4) for k in range(3)])
    np.testing.assert_allclose(centroids, want, atol=1e-6)
    capped, number = run(*start, means, np.ones_like(counted), cap=2)
    mu = np.zeros((3, 4))
    for n, mean in enumerate(means):
        mu = (mu * min(n, 2) + mean) / (min(n, 2) + 1)
    np.testing.assert_allclose(capped, mu, atol=1e-6)
    np.testing.assert_array_equal(number, [2, 2, 2])


def test_move_is_one_image_after_the_other():
    rng = np.random.default_rng(1)
    start, means, counted = rng.normal(size=(3, 4)), rng.normal(size=(6, 3, 4)), rng.random((6, 3)) < 0.7
    want = start.copy()
    for mean, there in zip(means, counted, strict=True):
        want[there] = 0.7 * want[there] + 0.3 * mean[there]
    np.testing.assert_allclose(move(start, means, counted, 0.3), want, atol=1e-6)
    np.testing.assert_allclose(move(start, means, np.zeros_like(counted), 0.3), start, atol=1e-6)


def test_sums_over_devices_are_those_of_the_batch():
    rng = np.random.default_rng(2)
    features, label = rng.normal(size=(8, 5, 6, 7)).astype(np.float32), rng.integers(0, 5, (8, 5, 6)).astype(np.uint8)
    label[label == 4] = 255
    label[:, :, 0] = 255
    rows = jax.NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("data"))

    @jax.jit
    def means(features, label):
        sums, count = prototypes.class_sums(features, label, 4)
        return sums.sum(0) / count.sum(0)[:, None]

    found = means(jax.device_put(features, rows), jax.device_put(label, rows))
    want = np.stack([features[label == k].astype(np.float64).mean(0) for k in range(4)])
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_few_pixels_do_not_count():
    features, label = np.ones((1, 3, 4, 2), np.float32), np.full((1, 3, 4), 255, np.uint8)
    label[0, 0, :], label[0, 1, :3], label[0, 2, :2] = 0, 1, 1
    mean, counted = image_means(features, label, 3)
    assert counted.tolist() == [[False, True, False]] and mean.tolist() == [[[0, 0], [1, 1], [0, 0]]]
    assert image_means(features, label, 3, min_pixels=4)[1].tolist() == [[True, True, False]]


def test_distances_keep_their_digits_and_their_gradient():
    rng = np.random.default_rng(3)
    features, centroids = rng.normal(size=(20, 16)) + 50, rng.normal(size=(5, 16)) + 50
    features[0] = centroids[2]
    features, centroids = features.astype(np.float32), centroids.astype(np.float32)
    want = np.linalg.norm(features[:, None].astype(np.float64) - centroids, axis=-1)
    slope = lambda x: jax.grad(lambda x: prototypes.distances(x, centroids).sum())(x)
    found, gradient = jax.device_get(jax.jit(lambda x, c: (prototypes.distances(x, c), slope(c)))(features, centroids))
    np.testing.assert_allclose(found[1:], want[1:], rtol=1e-5)
    assert abs(found[0, 2]) < 5e-3
    assert np.isfinite(gradient).all()


def test_unknown_classes_are_never_the_nearest():
    rng = np.random.default_rng(4)
    features, centroids = rng.normal(size=(2, 4, 5, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    centroids[3] = 0  # would win: the features are spread around it
    known = np.array([True, True, False, False, True, True])

    @jax.jit
    def run(features, centroids):
        nearest = lambda *a: prototypes.nearest_centroid(features, centroids, (9, 11), *a, chunks=2)
        weights = prototypes.centroid_weights(features, centroids, known, temperature=2.0)
        want = bilinear(prototypes.centroid_weights(features, centroids), (9, 11), align_corners=True).argmax(-1)
        return nearest(known), weights, nearest(), want

    found, weights, free, want = jax.device_get(run(features, centroids))
    assert found.dtype == np.uint8 and not np.isin(found, [2, 3]).any()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert not np.asarray(weights)[..., 2:4].any()
    assert (np.asarray(free) == 3).any() and (np.asarray(free) == want).mean() > 0.99
