"""Pseudo-labels against FDA's own code, the two readings of its threshold, and histograms that add up."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import pseudo_labels as ops
from segjax.ops.mixing import paste
from segjax.ops.pixel_losses import upsampled_cross_entropy
from segjax.ops.resize import bilinear

histogram_of = jax.jit(ops.confidence_histogram, static_argnums=(2, 3))
kept = jax.jit(ops.kept)


@functools.partial(jax.jit, static_argnums=1)
def multi_band(logits, size):
    probability = bilinear(ops.mean_softmax(logits, (0.3333, 0.3333, 0.3334)), size, align_corners=True)
    return jnp.argmax(probability, -1), jnp.max(probability, -1)


@pytest.mark.parametrize("seed", [0, 1])
def test_multi_band_transfer_of_the_released_code(goldens, seed):
    golden = np.load(goldens / f"03_fda_mbt_pseudo_s{seed}.npz")
    logits = [golden[f"in_logits{n}"].transpose(0, 2, 3, 1) for n in (1, 2, 3)]
    label, confidence = multi_band(logits, tuple(golden["par_out_hw"].tolist()))
    np.testing.assert_array_equal(label, golden["out_label"])
    np.testing.assert_allclose(confidence, golden["out_prob"], atol=1e-5)
    bins = 1 << 20  # finer than the vector's tolerance
    histogram = sum(np.asarray(histogram_of(a, b, 19, bins)) for a, b in zip(*map(np.asarray, (label, confidence)), strict=True))
    np.testing.assert_allclose(ops.class_thresholds(histogram, cap=2.0), golden["out_thr_raw"], atol=5e-6)
    thresholds = ops.class_thresholds(histogram)
    np.testing.assert_allclose(thresholds, golden["out_thr"], atol=5e-6)
    stable = golden["aux_stable"] & (np.abs(golden["out_prob"] - golden["out_thr"][golden["out_label"]]) > 5e-6)
    assert stable.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(kept(label, confidence, thresholds))[stable], golden["out_pseudo"][stable])


@pytest.mark.parametrize(("rule", "share"), [("code", 0.34), ("paper", 0.66)])
def test_what_each_rule_keeps(rule, share):
    confidence = np.linspace(0.2, 0.8, 1000, dtype=np.float32)
    label = np.zeros(1000, np.uint8)
    thresholds = ops.class_thresholds(np.asarray(histogram_of(label, confidence, 3)), rule=rule)
    assert thresholds.tolist()[1:] == [0.0, 0.0]  # classes that never occur
    assert np.mean(np.asarray(kept(label, confidence, thresholds)) == 0) == pytest.approx(share, abs=2e-3)


def test_ignored_pixels_count_nowhere_and_certain_ones_in_the_last_bin():
    label, confidence = np.array([255, 1, 1], np.uint8), np.array([0.9, 1.0, 0.0], np.float32)
    histogram = np.asarray(histogram_of(label, confidence, 2, 8))
    assert histogram.sum() == 2 and histogram[1, 7] == 1 and histogram[1, 0] == 1
    assert np.asarray(kept(label, confidence, np.array([0.0, 0.5]))).tolist() == [255, 1, 255]
    with pytest.raises(ValueError, match="rule='top'"):
        ops.class_thresholds(histogram, rule="top")


@pytest.mark.parametrize("seed", [0, 1])
def test_daformers_labels_quality_and_losses(goldens, seed):
    """The teacher's labels, the one weight of the batch with its margins, and both cross-entropies with their gradients."""
    z = np.load(goldens / f"06a_dacs_step_s{seed}.npz")
    nhwc = lambda name: z[name].transpose(0, 2, 3, 1)
    label, size = z["in_label"], z["in_label"].shape[1:]
    top, bottom = z["par_ignore_rows"].tolist()
    chosen = z["rnd_classes"][:, :, None, None]
    mask = ((label[:, None] == chosen) & (chosen >= 0)).any(1)

    def losses(source, mixed):
        teacher_label, confidence = ops.hard_labels(nhwc("in_teacher_logits"), size, chunks=4)
        quality = ops.quality(confidence, float(z["par_thr"]))
        weight = paste(mask, jnp.ones(()), quality * ops.margin_weight(size, top=top, bottom=bottom))
        mean = lambda *args, **keywords: jnp.divide(*upsampled_cross_entropy(*args, **keywords, mean_over="all", chunks=4))
        losses = mean(source, label), mean(mixed, paste(mask, label, teacher_label), pixel_weight=weight)
        return sum(losses), (teacher_label, quality, weight, losses)

    run = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))
    (_, (teacher_label, quality, weight, found)), gradients = run(nhwc("in_src_logits"), nhwc("in_mix_logits"))
    np.testing.assert_array_equal(np.asarray(teacher_label)[z["aux_pl_stable"]], z["out_pseudo_label"][z["aux_pl_stable"]])
    np.testing.assert_allclose(quality, z["out_q"], atol=2e-6)
    np.testing.assert_allclose(weight, z["out_mixed_weight"], atol=1e-5)
    np.testing.assert_allclose(found, (z["out_loss_src"], z["out_loss_mix"]), atol=2e-5)
    for gradient, name in zip(gradients, ("src", "mix"), strict=True):
        np.testing.assert_allclose(gradient, nhwc(f"grad_{name}_logits"), atol=2e-7)


def test_hard_labels_are_the_softmax_of_the_full_size_logits():
    logits = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    full = lambda x: jax.nn.softmax(bilinear(x, (11, 13), align_corners=True), -1)
    (label, confidence), probability = jax.jit(lambda x: (ops.hard_labels(x, (11, 13), align_corners=True), full(x)))(logits)
    probability = np.asarray(probability)
    np.testing.assert_allclose(confidence, probability.max(-1), atol=1e-6)
    assert label.dtype == jnp.uint8 and (np.asarray(label) == probability.argmax(-1)).mean() > 0.99


def test_margins():
    weight = np.asarray(ops.margin_weight((6, 8), top=1, bottom=2, left=3))
    assert weight.sum() == 3 * 5 and weight[1:4, 3:].all()
    for margins in ({"top": 3, "bottom": 3}, {"left": -1}, {"right": 8}):
        with pytest.raises(ConfigError):
            ops.margin_weight((6, 8), **margins)


def test_selection_counts():
    label = np.array([[0, 0, 0, 1, 1, 2]], np.uint8)
    taken = np.array([[0, 0, 255, 255, 1, 2]], np.uint8)
    truth = np.array([[0, 1, 0, 1, 0, 255]], np.uint8)
    assert jax.jit(ops.selection_counts, static_argnums=3)(label, taken, truth, 3).tolist() == [[3, 2, 1], [2, 1, 0], [0, 0, 0]]
