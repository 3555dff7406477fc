"""Confusion and IoU against the official evaluation's numbers and a plain numpy count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import metrics

VECTORS = ["10_eval_s0", "10_eval_s1"]
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # Cityscapes label ids of train ids 0..18
confusion = jax.jit(metrics.confusion_matrix, static_argnums=2, static_argnames="misses")


@pytest.mark.parametrize("name", VECTORS)
def test_train_id_protocol(goldens, name):
    vectors = np.load(goldens / f"{name}.npz")
    matrix = np.asarray(confusion(vectors["in_gt_train"], vectors["in_pred_train"], 19))
    np.testing.assert_array_equal(matrix, vectors["out_hist"])
    # the authors' scores give 0 to a class that only this protocol leaves absent
    np.testing.assert_allclose(metrics.iou(matrix), vectors["out_iou_train_f64"], rtol=1e-12)
    scores = [*metrics.accuracies(matrix).values(), metrics.mean_iou(matrix)]
    np.testing.assert_allclose(scores, vectors["out_scores_f64"], rtol=1e-12)
    hits, union = np.diagonal(matrix), matrix.sum(1) + matrix.sum(0) - np.diagonal(matrix)
    np.testing.assert_array_equal(np.stack([hits, union, matrix.sum(0), matrix.sum(1)]), vectors["out_areas"])


@pytest.mark.parametrize("name", VECTORS)
def test_official_label_id_protocol(goldens, name):
    """A prediction of an ignored id is a miss of the true class."""
    vectors = np.load(goldens / f"{name}.npz")
    table = np.full(256, 255, np.uint8)
    table[list(LABEL_IDS)] = np.arange(19)
    matrix = np.asarray(confusion(table[vectors["in_gt_id"]], table[vectors["in_pred_id"]], 19, misses=True))
    assert matrix.shape == (19, 20) and matrix[:, 19].any() == (name == "10_eval_s1")
    np.testing.assert_array_equal(matrix[:, :19], vectors["out_conf_id"][np.ix_(LABEL_IDS, LABEL_IDS)])
    np.testing.assert_allclose(metrics.iou(matrix), vectors["out_iou_f64"], rtol=1e-12)
    np.testing.assert_allclose(metrics.mean_iou(matrix), vectors["out_miou_f64"], rtol=1e-12)
    subsets = (None, metrics.SYNTHIA_16, metrics.SYNTHIA_13)
    means = [metrics.mean_iou(matrix, classes) for classes in subsets]
    means += [metrics.mean_iou(matrix, classes, absent=0.0) for classes in (*subsets[1:], None)]
    np.testing.assert_allclose(means, vectors["out_means_f64"], rtol=1e-12)
    assert metrics.SYNTHIA_16 == tuple(vectors["par_idx16"]) and metrics.SYNTHIA_13 == tuple(vectors["par_idx13"])


@pytest.mark.parametrize("misses", [False, True])
def test_both_forms_equal_a_plain_count(misses, monkeypatch):
    """The one-hot form is what accelerators run: forced here through platform_dependent's default, over several chunks."""
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(-1, 7, (2, 3, 50, 70))
    label[0, 0] = 255
    want = np.zeros((5, 6), np.int64)
    counted = (label >= 0) & (label < 5)
    np.add.at(want, (label[counted], np.where((prediction >= 0) & (prediction < 5), prediction, 5)[counted]), 1)
    want = want if misses else want[:, :5]
    count = lambda: jax.jit(lambda *x: metrics.confusion_matrix(*x, 5, misses=misses))(label, prediction)  # traced anew at each call
    np.testing.assert_array_equal(count(), want)
    monkeypatch.setattr(metrics, "_PIXELS_A_CHUNK", 1000)
    monkeypatch.setattr(metrics.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    np.testing.assert_array_equal(count(), want)


def test_sharded_batch():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 8, 16, 16)).astype(np.uint8)
    rows = jax.NamedSharding(mesh, jax.P("data"))
    out = confusion(jax.device_put(label, rows), jax.device_put(prediction, rows), 4)
    np.testing.assert_array_equal(out, confusion(label, prediction, 4))
    assert int(out.sum()) == label.size


def test_absent_classes():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(metrics.iou(matrix), [0.75, 0.0, np.nan])
    assert metrics.mean_iou(matrix) == 0.375
    assert metrics.mean_iou(matrix, absent=0.0) == 0.25
    assert np.isnan(metrics.mean_iou(np.zeros((3, 3), int)))
    assert all(np.isnan(v) for v in metrics.accuracies(np.zeros((3, 3), int)).values())


def test_counts_beyond_32_bits():
    matrix = np.array([[2**33, 2**33], [0, 2**34]])
    np.testing.assert_allclose(metrics.iou(matrix), [0.5, 2 / 3])


def test_errors():
    with pytest.raises(ConfigError, match="resize the prediction"):
        metrics.confusion_matrix(jnp.zeros((4, 4), int), jnp.zeros((4, 5), int), 3)
    for wrong in (np.zeros((3, 5), int), np.zeros((3, 3)), np.zeros(3, int)):
        with pytest.raises(ConfigError):
            metrics.iou(wrong)
