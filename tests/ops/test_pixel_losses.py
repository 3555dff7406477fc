"""Pixel losses against the originals' numbers, the naive forms, and float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import pixel_losses as losses
from segjax.ops.resize import bilinear

VECTORS = ["02_entropy_s0", "02_entropy_s1"]


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def sample(shape=(2, 5, 6, 4), size=(23, 31), seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, shape[-1] + 1, (shape[0], *size))
    return rng.normal(size=shape).astype(np.float32) * 3, np.where(label == shape[-1], 255, label).astype(dtype)


cross_entropy = jax.jit(losses.cross_entropy)


def naive(logits, label, align_corners, weights):
    loss = losses.cross_entropy(bilinear(logits, label.shape[1:], align_corners), label)
    weight = jnp.where(label == 255, 0, jnp.asarray(weights)[jnp.where(label == 255, 0, label)])
    return jnp.sum(loss * weight), jnp.sum(weight)


@functools.partial(jax.jit, static_argnums=(1, 2))
def robust(logits, eta, normalizer):
    return jax.value_and_grad(lambda x: jnp.mean(losses.robust_entropy(x, eta, normalizer=normalizer)))(logits)


@jax.jit
def advent(logits):
    return losses.self_information(logits), *jax.value_and_grad(lambda x: jnp.mean(losses.min_entropy(x)))(logits)


@pytest.mark.parametrize("name", VECTORS)
def test_authors_robust_entropy(goldens, name):
    vectors = np.load(goldens / f"{name}.npz")
    logits = nhwc(vectors["in_logits"])

    for eta, want in zip(vectors["par_eta"], vectors["out_loss_robust_f64"], strict=True):
        value, gradient = robust(logits, float(eta), float(vectors["par_norm"]))
        np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, nhwc(vectors["grad_logits_robust"]), atol=2e-8)


@pytest.mark.parametrize("name", VECTORS)
def test_advent_entropy(goldens, name):
    vectors = np.load(goldens / f"{name}.npz")
    logits = nhwc(vectors["in_logits"])
    information, value, gradient = advent(logits)
    np.testing.assert_allclose(information, nhwc(vectors["out_selfinfo"]), atol=1e-6)
    np.testing.assert_allclose(value, vectors["out_minent"], atol=5e-6)
    np.testing.assert_allclose(gradient, nhwc(vectors["grad_logits_minent"]), atol=2e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", VECTORS)
def test_authors_cross_entropy(goldens, name, weighted):
    vectors = np.load(goldens / f"{name}.npz")
    weights = vectors["in_weight"] if weighted else None
    suffix = "_weighted" if weighted else ""

    def loss(logits):
        total, count = losses.upsampled_cross_entropy(logits, vectors["in_label"], align_corners=True, class_weights=weights, chunks=5)
        return total / count

    value, gradient = jax.jit(jax.value_and_grad(loss))(nhwc(vectors["in_logits"]))
    np.testing.assert_allclose(value, vectors[f"out_ce{suffix}"], atol=5e-5)
    np.testing.assert_allclose(gradient, nhwc(vectors[f"grad_logits_ce{suffix}"]), atol=1e-7)


@pytest.mark.parametrize("align_corners", [False, True])
def test_fused_equals_naive(align_corners):
    logits, label = sample()
    weights = np.array([1.0, 0.5, 2.0, 0.25], np.float32)

    def fused(x, chunks):
        return losses.upsampled_cross_entropy(x, label, align_corners=align_corners, class_weights=weights, chunks=chunks)

    @jax.jit
    def run(x):
        slope = lambda f: jax.value_and_grad(f, has_aux=True)(x)
        each = [(fused(x, chunks), slope(functools.partial(fused, chunks=chunks))) for chunks in ("auto", 1, 5, 23)]
        return each, slope(lambda x: naive(x, label, align_corners, weights))

    each, ((want, want_count), want_gradient) = jax.device_get(run(logits))
    for (alone, _), ((value, count), gradient) in each:
        np.testing.assert_allclose(value, want, rtol=1e-5)
        np.testing.assert_allclose(alone, want, rtol=1e-5)
        np.testing.assert_allclose(count, want_count, rtol=1e-6)
        np.testing.assert_allclose(gradient, want_gradient, atol=1e-5 * np.abs(want_gradient).max())


@pytest.mark.parametrize("size_in,size_out", [((8, 8), (64, 64)), ((7, 9), (7, 9)), ((1, 1), (5, 3)), ((12, 10), (5, 4)), ((4, 3), (1, 1))])
def test_fused_at_any_size(size_in, size_out):
    logits, label = sample((1, *size_in, 3), size_out, dtype=np.int32)
    label[0, 0, 0] = 1

    def both(x, align_corners):
        fused = losses.upsampled_cross_entropy(x, label, align_corners=align_corners, chunks=1)[0]
        return jnp.stack([fused, naive(x, label, align_corners, np.ones(3, np.float32))[0]])

    run = jax.jit(lambda x: [jax.jacrev(functools.partial(both, align_corners=aligned))(x) for aligned in (False, True)])
    for gradient, want in jax.device_get(run(logits)):
        np.testing.assert_allclose(gradient, want, atol=1e-5 * np.abs(want).max() + 1e-7)


def test_nothing_to_learn_from():
    """A batch without one labelled pixel: zeros, no NaN, also from logits that overflowed under ignored pixels."""
    logits, label = sample()
    label[:] = 255
    upsampled = jax.jit(jax.value_and_grad(losses.upsampled_cross_entropy, has_aux=True))
    (value, count), gradient = upsampled(logits, label)
    assert value == 0 == count and not np.any(gradient)
    mean = jax.jit(lambda x, y: losses.masked_mean(losses.cross_entropy(x, y), y != 255))
    assert mean(logits, label[:, :5, :6]) == 0


def test_large_logits_are_stable():
    logits, label = sample()
    run = jax.jit(jax.value_and_grad(lambda x: losses.upsampled_cross_entropy(x * 1e4, label), has_aux=True))
    (total, count), gradient = run(logits)
    assert np.isfinite(total) and np.isfinite(gradient).all()
    assert count == (label != 255).sum()


def test_half_precision_logits_give_a_half_precision_gradient():
    logits, label = sample()
    half = logits.astype(jnp.bfloat16)
    slope = jax.jit(jax.grad(lambda x: losses.upsampled_cross_entropy(x, label)[0]))
    gradient, want = slope(half), slope(half.astype(np.float32))
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, np.float32), want, rtol=1e-2, atol=1e-2)


def test_full_resolution_logits_never_exist():
    logits, label = np.zeros((1, 32, 64, 19), np.float32), np.zeros((1, 256, 512), np.uint8)

    def temporary(loss):
        return jax.jit(jax.value_and_grad(loss)).lower(logits).compile().memory_analysis().temp_size_in_bytes

    fused = temporary(lambda x: losses.upsampled_cross_entropy(x, label, chunks=32)[0])
    full = 4 * 256 * 512 * 19
    assert fused < full / 4 < full <= temporary(lambda x: naive(x, label, False, np.ones(19, np.float32))[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_hard_examples(goldens, seed):
    vectors = np.load(goldens / f"05a_diga_losses_s{seed}.npz")
    label, logits = vectors["in_label"], nhwc(vectors["in_student"])[: len(vectors["in_label"])]

    @jax.jit
    def loss(logits, threshold, min_kept):
        hard = losses.hard_pixels(logits, label, threshold=threshold, min_kept=min_kept, align_corners=True, chunks=4)
        total, count = losses.upsampled_cross_entropy(logits, label, pixel_weight=hard, align_corners=True, chunks=4)
        return total / count

    for min_kept, threshold in ((100_000, 0.7), (150, 0.7), (600, 0.05)):
        value, gradient = jax.value_and_grad(loss)(logits, threshold, min_kept)
        np.testing.assert_allclose(value, vectors[f"out_ohem_k{min_kept}"], atol=5e-5)
        np.testing.assert_allclose(gradient, nhwc(vectors[f"grad_ohem_k{min_kept}"]), atol=2e-7)


def test_kth_smallest():
    rng = np.random.default_rng(0)
    value, mask = (rng.random((3, 50)) ** 4).astype(np.float32), rng.random((3, 50)) < 0.7
    value[0, :20] = 0.25
    found = jax.jit(losses.kth_smallest)
    for k in (0, 1, 17, mask.sum() - 1):
        assert found(value, mask, k) == np.sort(value[mask])[k]
    assert found(value, mask, -1) == 0
    assert found(value, np.zeros_like(mask), -1) == 0


def test_no_hard_pixel_without_a_label():
    logits, label = sample()
    hard = jax.jit(functools.partial(losses.hard_pixels, chunks=2))
    assert not np.any(hard(logits, np.full_like(label, 255)))
    assert not np.any(hard(logits, np.full(label.shape, -1)))


def test_weighted_pixels_and_the_mean_over_all_of_them():
    """mmseg's weighted cross-entropy: ignored pixels give 0 and count."""
    logits, label = sample((2, 5, 6, 4), (10, 12))
    weight = np.random.default_rng(1).random(label.shape).astype(np.float32)
    weight[0, 0] = 0

    def loss(x, mean_over):
        total, count = losses.upsampled_cross_entropy(x, label, pixel_weight=weight, mean_over=mean_over, chunks=3)
        return total, count

    def want(x):
        return jnp.sum(weight * losses.cross_entropy(bilinear(x, label.shape[1:]), label))

    @jax.jit
    def run(x):
        ours = jax.value_and_grad(loss, has_aux=True)(x, "all")
        return ours, jax.value_and_grad(want)(x), loss(x, "valid")[1]

    ((total, count), gradient), (expected, expected_gradient), valid = run(logits)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)
    assert count == label.size
    np.testing.assert_allclose(valid, weight[label != 255].sum(), rtol=1e-6)


def test_sharded_batch_equals_one_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    logits, label = sample((8, 4, 4, 3), (16, 16))

    def loss(x, y):
        total, count = losses.upsampled_cross_entropy(x, y, chunks=4)
        return total / count

    want, want_gradient = jax.jit(jax.value_and_grad(loss))(logits, label)
    rows = jax.NamedSharding(mesh, jax.P("data"))
    value, gradient = jax.jit(jax.value_and_grad(loss))(jax.device_put(logits, rows), jax.device_put(label, rows))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-8)


def test_cross_entropy_closed_form():
    logits, label = sample((2, 5, 6, 4), (5, 6))
    exact = logits.astype(np.float64)
    log_probs = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, np.where(label == 255, 0, label)[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, label), np.where(label == 255, 0, -picked), atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: losses.cross_entropy(x, label).sum()))(logits)
    want = (np.exp(log_probs) - np.eye(4)[np.where(label == 255, 0, label)]) * (label != 255)[..., None]
    np.testing.assert_allclose(gradient, want, atol=1e-5)
    assert not np.any(cross_entropy(logits, np.full_like(label, 77)))


def test_entropy_bounds_and_gradients():
    logits = np.array([[0, 0, 0, 0], [1e4, 0, 0, 0], [-np.inf, 0, 0, -np.inf]], np.float32)

    @jax.jit
    def run(x):
        slopes = [jax.grad(lambda x, f=f: f(x).sum())(x[:2]) for f in (losses.entropy, losses.robust_entropy, losses.min_entropy)]
        return losses.entropy(x), losses.robust_entropy(x[:2]), slopes

    entropy, robust_entropy, slopes = run(logits)
    np.testing.assert_allclose(entropy, [np.log(4), 0, np.log(2)], atol=1e-6)
    np.testing.assert_allclose(robust_entropy, [1, 1e-16], atol=1e-6)
    assert np.isfinite(slopes).all()


def test_masked_mean():
    value = np.array([1.0, 3.0, np.nan], np.float32)
    mean = jax.jit(jax.value_and_grad(losses.masked_mean))
    found, slope = mean(value, np.array([True, True, False]))
    assert found == 2 and np.array_equal(slope, [0.5, 0.5, 0])
    assert mean(value, np.array([1.0, 3.0, 0.0], np.float32))[0] == 2.5


def test_errors():
    logits, label = sample()
    for keywords in (
        {"class_weights": np.ones(3)},
        {"chunks": 0},
        {"chunks": 24},
        {"mean_over": "none"},
        {"pixel_weight": np.ones((2, 5, 6))},
    ):
        with pytest.raises(ConfigError):
            losses.upsampled_cross_entropy(logits, label, **keywords)
    with pytest.raises(ConfigError, match="same B"):
        losses.upsampled_cross_entropy(logits, label[:1])
