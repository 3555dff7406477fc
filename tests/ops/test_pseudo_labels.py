"""Pseudo-labels against FDA's own code, the two readings of its threshold, and histograms that add up."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import pseudo_labels as ops
from segjax.ops.resize import bilinear


@pytest.mark.parametrize("seed", [0, 1])
def test_multi_band_transfer_of_the_released_code(goldens, seed):
    golden = np.load(goldens / f"03_fda_mbt_pseudo_s{seed}.npz")
    logits = [golden[f"in_logits{n}"].transpose(0, 2, 3, 1) for n in (1, 2, 3)]
    probability = bilinear(ops.mean_softmax(logits, (0.3333, 0.3333, 0.3334)), tuple(golden["par_out_hw"].tolist()), align_corners=True)
    label, confidence = jnp.argmax(probability, -1), jnp.max(probability, -1)
    np.testing.assert_array_equal(label, golden["out_label"])
    np.testing.assert_allclose(confidence, golden["out_prob"], atol=1e-5)
    bins = 1 << 20  # finer than the vector's tolerance
    histogram = sum(np.asarray(ops.confidence_histogram(a, b, 19, bins)) for a, b in zip(label, confidence, strict=True))
    np.testing.assert_allclose(ops.class_thresholds(histogram, cap=2.0), golden["out_thr_raw"], atol=5e-6)
    thresholds = ops.class_thresholds(histogram)
    np.testing.assert_allclose(thresholds, golden["out_thr"], atol=5e-6)
    stable = golden["aux_stable"] & (np.abs(golden["out_prob"] - golden["out_thr"][golden["out_label"]]) > 5e-6)
    assert stable.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(ops.kept(label, confidence, thresholds))[stable], golden["out_pseudo"][stable])


@pytest.mark.parametrize(("rule", "share"), [("code", 0.34), ("paper", 0.66)])
def test_what_each_rule_keeps(rule, share):
    confidence = jnp.linspace(0.2, 0.8, 1000)
    label = jnp.zeros(1000, jnp.uint8)
    thresholds = ops.class_thresholds(np.asarray(ops.confidence_histogram(label, confidence, 3)), rule=rule)
    assert thresholds.tolist()[1:] == [0.0, 0.0]  # classes that never occur
    assert np.mean(np.asarray(ops.kept(label, confidence, thresholds)) == 0) == pytest.approx(share, abs=2e-3)


def test_ignored_pixels_count_nowhere_and_certain_ones_in_the_last_bin():
    label, confidence = jnp.asarray([255, 1, 1], jnp.uint8), jnp.asarray([0.9, 1.0, 0.0])
    histogram = np.asarray(ops.confidence_histogram(label, confidence, 2, 8))
    assert histogram.sum() == 2 and histogram[1, 7] == 1 and histogram[1, 0] == 1
    assert np.asarray(ops.kept(label, confidence, np.array([0.0, 0.5]))).tolist() == [255, 1, 255]
    with pytest.raises(ValueError, match="rule='top'"):
        ops.class_thresholds(histogram, rule="top")
