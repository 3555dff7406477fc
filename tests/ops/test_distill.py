"""Distillation against DiGA's own losses and their gradients, and against the forms that make full-size logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import distill
from segjax.ops.pixel_losses import entropy, upsampled_cross_entropy
from segjax.ops.resize import bilinear

VECTORS = ["05a_diga_losses_s0", "05a_diga_losses_s1"]


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", VECTORS)
def test_the_authors_losses(goldens, name):
    vectors = np.load(goldens / f"{name}.npz")
    label, (seg_weight, distil_weight) = vectors["in_label"], vectors["par"]
    size, views = label.shape[1:], len(label)
    teacher = nhwc(vectors["in_teacher"])

    def losses(student):
        pair, labels = (student[:views], student[views:]), (teacher[:views], teacher[views:])
        total, count = upsampled_cross_entropy(pair[0], label, align_corners=True, mean_over="all", chunks=4)
        seg = total / count
        terms = {}
        for suffix, scale in (("gta", 0.5), ("synthia", 0.25)):
            total, count = distill.symmetric_distillation(pair, labels, size, reverse_weight=scale, align_corners=True, chunks=4)
            terms[suffix] = total / count
        return seg_weight * seg + distil_weight * terms["gta"], (seg, terms["gta"], terms["synthia"])

    (total, found), gradient = jax.jit(jax.value_and_grad(losses, has_aux=True))(nhwc(vectors["in_student"]))
    np.testing.assert_allclose([*found, total], vectors["out_f64"], rtol=1e-5)
    np.testing.assert_allclose([*found, total], [vectors[f"out_{k}"] for k in ("seg", "distil_gta", "distil_synthia", "total")], atol=5e-5)
    np.testing.assert_allclose(gradient, nhwc(vectors["grad_student"]), atol=2e-7)


@pytest.mark.parametrize("name", VECTORS)
def test_the_authors_terms(goldens, name):
    """Each direction by itself, and the masked loss of the SYNTHIA code (teacher and student of the same view)."""
    vectors = np.load(goldens / f"{name}.npz")
    student, teacher = nhwc(vectors["in_student"]), nhwc(vectors["in_teacher"])
    size, views = vectors["in_label"].shape[1:], len(student) // 2

    @jax.jit
    def terms(student, teacher):
        one = lambda s, t, **keywords: distill.upsampled_soft_cross_entropy(s, t, size, align_corners=True, chunks=4, **keywords)
        return (
            one(student[views:], teacher[:views]),
            one(student[:views], teacher[views:]),
            one(student, teacher, pixel_weight=vectors["in_mask"]),
        )

    there, back, (total, count) = terms(student, teacher)
    np.testing.assert_allclose(there[0] / there[1], vectors["out_term_t0s1"], atol=5e-5)
    np.testing.assert_allclose(back[0] / back[1], vectors["out_term_t1s0"], atol=5e-5)
    assert count == vectors["in_mask"].sum()
    np.testing.assert_allclose(total / (count + 1e-6), vectors["out_masked_distil"], atol=5e-5)


def test_fused_equals_naive():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 6, 4)).astype(np.float32), rng.normal(size=(2, 9, 4, 4)).astype(np.float32)
    size, weight = (23, 31), rng.random((2, 23, 31)).astype(np.float32)

    def fused(chunks):
        return lambda x: distill.upsampled_soft_cross_entropy(x, teacher, size, pixel_weight=weight, chunks=chunks)[0]

    def naive(x):
        return jnp.sum(weight * distill.soft_cross_entropy(bilinear(x, size), bilinear(teacher, size)))

    run = jax.jit(lambda x: [jax.value_and_grad(f)(x) for f in (naive, fused("auto"), fused(3))])
    (want, want_gradient), *each = jax.device_get(run(student))
    for value, gradient in each:
        np.testing.assert_allclose(value, want, rtol=1e-5)
        np.testing.assert_allclose(gradient, want_gradient, atol=1e-5 * np.abs(want_gradient).max())


def test_equal_views_and_networks_give_their_entropy():
    logits = np.random.default_rng(1).normal(size=(2, 4, 5, 3)).astype(np.float32)

    @jax.jit
    def run(x):
        total, count = distill.symmetric_distillation((x, x), (logits, logits), (4, 5), reverse_weight=0.5, chunks=1)
        slope = jax.grad(lambda x: distill.symmetric_distillation((x, x), (logits, logits), (4, 5), chunks=1)[0])(x)
        return total / count, jnp.mean(entropy(x)), slope

    value, mean, slope = run(logits)
    np.testing.assert_allclose(value, 1.5 * mean, rtol=1e-5)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_the_teacher_gets_no_gradient_and_may_rule_classes_out():
    rng = np.random.default_rng(2)
    student, teacher = (rng.normal(size=(2, 3, 4, 3)).astype(np.float32) for _ in range(2))
    slope = jax.jit(jax.grad(lambda t: distill.symmetric_distillation((student, student), (t, t), (6, 8), chunks=2)[0]))(teacher)
    assert not np.any(slope)
    without = [np.where(np.arange(3) == 0, -np.inf, x).astype(np.float32) for x in (student, teacher)]
    assert np.isfinite(jax.jit(distill.soft_cross_entropy)(*without)).all()


def test_a_mask_without_a_pixel():
    logits, none = np.ones((1, 3, 4, 3), np.float32), np.zeros((1, 6, 8), bool)
    run = jax.jit(lambda x: distill.upsampled_soft_cross_entropy(x, x, (6, 8), pixel_weight=none, chunks=2))
    total, count = run(logits)
    assert total == 0 and count == 0


def test_half_precision_and_devices():
    rng = np.random.default_rng(3)
    student, teacher = (rng.normal(size=(8, 4, 4, 3)).astype(np.float32) for _ in range(2))
    loss = jax.jit(jax.value_and_grad(lambda s, t: distill.upsampled_soft_cross_entropy(s, t, (16, 16), chunks=4)[0]))
    want, want_gradient = loss(student, teacher)
    rows = jax.NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("data"))
    value, gradient = loss(jax.device_put(student, rows), jax.device_put(teacher, rows))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-6)
    half, half_gradient = loss(student.astype(jnp.bfloat16), teacher.astype(jnp.bfloat16))
    assert half_gradient.dtype == jnp.bfloat16 and half.dtype == jnp.float32
    np.testing.assert_allclose(half, want, rtol=1e-2)


def test_full_size_logits_never_exist():
    low, size = np.zeros((1, 32, 64, 19), np.float32), (256, 512)

    def temporary(chunks):
        loss = lambda x, teacher: distill.upsampled_soft_cross_entropy(x, teacher, size, chunks=chunks)[0]
        return jax.jit(jax.value_and_grad(loss)).lower(low, low).compile().memory_analysis().temp_size_in_bytes

    full = 4 * 256 * 512 * 19
    assert temporary(32) < full / 4 < 2 * full <= temporary(1)


def test_errors():
    x = np.zeros((2, 3, 4, 5), np.float32)
    for student, teacher, weight in ((x[0], x, None), (x, x[:1], None), (x, x[..., :4], None), (x, x, np.ones((2, 4, 8)))):
        with pytest.raises(ConfigError):
            distill.upsampled_soft_cross_entropy(student, teacher, (6, 8), pixel_weight=weight)
