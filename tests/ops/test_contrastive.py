"""Supervised contrastive losses against the originals' vectors, a dense recomputation, lone classes and a sharded mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import contrastive
from segjax.runtime.mesh import batch_sharding, make_mesh, replicated

STATIC = ("num_classes", "temperature", "base_temperature", "form", "over", "block")
supervised_contrastive = jax.jit(contrastive.supervised_contrastive, static_argnames=STATIC)


@functools.partial(jax.jit, static_argnames=STATIC)
def mean(anchors, keys, anchor_label, key_label, **options):
    total, count = supervised_contrastive(anchors, keys, anchor_label, key_label, **options)
    return total / jnp.maximum(count, 1)


def unit(x):
    return x / (x**2).sum(-1, keepdims=True) ** 0.5


@functools.partial(jax.jit, static_argnames=("views", *STATIC))
def multi_view(feature, label, views, **options):
    """Value and gradient of features [N,V,D]: all views, or the first one alone, are anchors; all are keys."""

    def loss(feature):
        n, v, _ = feature.shape
        keys = feature.transpose(1, 0, 2).reshape(v * n, -1)
        anchors = keys if views == "all" else feature[:, 0]
        labels = jnp.tile(label, v)
        return mean(anchors, keys, labels[: len(anchors)], labels, itself=jnp.arange(len(anchors)), **options)

    return jax.value_and_grad(loss)(feature)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("case", "views"), [("n1", "all"), ("v2", "all"), ("one", "one")])
def test_supcon_reference(goldens, seed, case, views):
    golden = np.load(goldens / f"04a_supcon_s{seed}.npz")
    temperature, base = (float(x) for x in golden[f"par_{case}"])
    options = dict(views=views, num_classes=100, temperature=temperature, base_temperature=base, block=32)
    assert golden[f"in_label_{case}"].max() < 100
    value, gradient = multi_view(golden[f"in_feat_{case}"], golden[f"in_label_{case}"], **options)
    np.testing.assert_allclose(value, golden[f"out_loss_{case}"], atol=5e-5)
    np.testing.assert_allclose(gradient, golden[f"grad_feat_{case}"], atol=1e-5)


@functools.partial(jax.jit, static_argnames=STATIC)
def pixels(target, stylized, subset, label, **options):
    def loss(target, stylized):
        pick = lambda x: unit(x.transpose(0, 2, 3, 1).reshape(-1, 19)[subset])
        return mean(pick(target), pick(stylized), label, label, **options)

    return jax.value_and_grad(loss, (0, 1))(target, stylized)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seeds_pixel_variant(goldens, seed):
    """The released code with the row maximum kept a column; 255 is one more class there."""
    golden = np.load(goldens / f"04b_pixel_contrast_s{seed}.npz")
    label = golden["in_label"].reshape(-1)[golden["rnd_subset"]]
    label = np.where(label == 255, 19, label)
    options = dict(num_classes=20, temperature=float(golden["par_tau"]), form="negatives", block=64)
    value, gradients = pixels(golden["in_trg_emb"], golden["in_styl_emb"], golden["rnd_subset"], label, **options)
    np.testing.assert_allclose(value, golden["out_loss_fixed_f64"], rtol=1e-5)
    np.testing.assert_allclose(gradients[0], golden["grad_trg_emb_fixed"], atol=5e-7)
    np.testing.assert_allclose(gradients[1], golden["grad_styl_emb_fixed"], atol=5e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_contrastive_seg(goldens, seed):
    golden = np.load(goldens / f"04c_contrastiveseg_s{seed}.npz")
    temperature, base = (float(x) for x in golden["par"])
    options = dict(views="all", num_classes=19, temperature=temperature, base_temperature=base, form="negatives", block=16)
    assert golden["in_label"].max() < 19
    value, gradient = multi_view(golden["in_feat"], golden["in_label"], **options)
    np.testing.assert_allclose(value, golden["out_loss"], atol=5e-5)
    np.testing.assert_allclose(gradient, golden["grad_feat"], atol=5e-6)


def dense(anchors, keys, anchor_label, key_label, *, temperature, form, num_classes):
    """The formulas on whole matrices, by autodiff."""
    s = anchors @ keys.T / temperature
    valid = key_label < num_classes
    same = (anchor_label[:, None] == key_label) & valid
    if form == "all":
        terms = jax.nn.logsumexp(jnp.where(valid, s, -jnp.inf), -1, keepdims=True) - s
    else:
        negatives = jax.nn.logsumexp(jnp.where(valid & ~same, s, -jnp.inf), -1, keepdims=True)
        terms = jnp.logaddexp(s, negatives) - s
    each = jnp.sum(jnp.where(same, terms, 0), -1) / jnp.maximum(same.sum(-1), 1)
    here = anchor_label < num_classes
    return jnp.sum(jnp.where(here, each, 0)) / here.sum()


def problem(n=70, m=90, classes=4, d=16):
    rng = np.random.default_rng(1)
    draw = lambda size: unit(rng.standard_normal((size, d), np.float32))
    label = lambda size: np.where((drawn := rng.integers(0, classes + 1, size)) == classes, 255, drawn)
    return draw(n), draw(m), label(n), label(m)


@pytest.mark.parametrize(("form", "kind"), [("all", np.uint8), ("negatives", np.int32)])
def test_blocks_equal_the_dense_form_with_other_lengths_and_ignored_pixels(form, kind):
    anchors, keys, *labels = problem()
    anchor_label, key_label = (label.astype(kind) for label in labels)
    options = dict(temperature=0.1, form=form, num_classes=4)
    blocks = lambda a, k: mean(a, k, anchor_label, key_label, block=32, **options)
    plain = lambda a, k: dense(a, k, anchor_label, key_label, **options)
    both = [jax.value_and_grad(f, (0, 1)) for f in (blocks, plain)]
    ours, theirs, alone = jax.jit(lambda *x: (both[0](*x), both[1](*x), blocks(*x)))(anchors, keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)
    np.testing.assert_allclose(alone, ours[0], rtol=1e-6)


@pytest.mark.parametrize("form", ["all", "negatives"])
def test_lone_classes_and_empty_sets_stay_finite(form):
    anchors, keys, _, _ = problem(n=6, m=6)
    options = dict(num_classes=4, form=form, temperature=0.07)
    slopes = jax.jit(jax.value_and_grad(functools.partial(mean, **options), (0, 1)))
    for anchor_label, key_label, zero in (
        (np.arange(6) % 4, np.full(6, 3), False),  # classes 0..2 have no positive; class 3 no negative
        (np.zeros(6, int), np.zeros(6, int), form == "negatives"),  # one class alone: nothing to push away
        (np.full(6, 255), np.full(6, 255), True),  # nobody takes part
        (np.zeros(6, int), np.full(6, 255), True),  # no key
    ):
        value, gradients = slopes(anchors, keys, anchor_label, key_label)
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
        assert (float(value) == 0) == zero or form == "negatives"
    alone = np.zeros(6, np.int32)
    assert np.isfinite(mean(anchors[:1], anchors[:1], alone[:1], alone[:1], itself=alone[:1], **options))


def test_the_mean_over_anchors_with_a_positive():
    anchors, keys, anchor_label, key_label = problem(n=8, m=8)
    key_label = np.where(key_label == anchor_label[0], 255, key_label)
    _, all_of_them = supervised_contrastive(anchors, keys, anchor_label, key_label, num_classes=4)
    _, some = supervised_contrastive(anchors, keys, anchor_label, key_label, num_classes=4, over="positives")
    assert all_of_them == (anchor_label < 4).sum() and some == sum(label < 4 and label in key_label for label in anchor_label)


def exact(anchors, keys, anchor_label, key_label, *, temperature, form):
    """Mean over the anchors with a positive, one pair after the other in float64."""
    s, each = np.asarray(anchors, np.float64) @ np.asarray(keys, np.float64).T / temperature, []
    for row, label in zip(s, anchor_label, strict=True):
        positives, negatives = row[key_label == label], row[key_label != label]
        costs = [np.logaddexp.reduce(row if form == "all" else np.append(negatives, x)) - x for x in positives]
        each.append(np.mean(costs))
    return np.mean(each)


@pytest.mark.parametrize("form", ["all", "negatives"])
@pytest.mark.parametrize("temperature", [0.01, 0.002])
def test_low_temperatures_neither_overflow_nor_flatten(form, temperature):
    """Similarities of up to 1000 apart: past what exp holds in float32, both ways."""
    anchors, keys, _, _ = problem(n=12, m=24, d=3)
    anchor_label, key_label = np.arange(12) % 3, np.arange(24) % 3
    options = dict(num_classes=3, temperature=temperature, form=form)
    value, gradients = jax.jit(jax.value_and_grad(lambda a, k: mean(a, k, anchor_label, key_label, **options), (0, 1)))(anchors, keys)
    want = exact(anchors, keys, anchor_label, key_label, temperature=temperature, form=form)
    np.testing.assert_allclose(value, want, rtol=2e-6)
    gradients = jax.device_get(gradients)
    step = 1e-4 * unit(gradients[0])
    move = lambda sign: exact(anchors + sign * step, keys, anchor_label, key_label, temperature=temperature, form=form)
    np.testing.assert_allclose((move(1) - move(-1)) / 2, np.sum(gradients[0] * step), rtol=1e-2)


def test_a_loss_near_zero_keeps_its_digits():
    """Classes far apart at a common temperature: 1 - 1e-7 has no room for it in float32."""
    label = np.arange(8) % 4
    keys = np.eye(4, dtype=np.float32)[label]
    value = mean(keys, keys, label, label, num_classes=4, temperature=0.07, form="negatives")
    np.testing.assert_allclose(value, np.log1p(6 * np.exp(-1 / 0.07)), rtol=0.02, atol=0)


def test_images_by_themselves_are_problems_by_themselves():
    anchors, keys, anchor_label, key_label = problem(n=60, m=75)
    parts = [x.reshape(3, -1, *x.shape[1:]) for x in (anchors, keys, anchor_label, key_label)]
    itself = np.tile(np.arange(20), (3, 1))
    loss = functools.partial(supervised_contrastive, num_classes=4, block=8)
    together = loss(*parts, itself=itself, over="positives")
    alone = [loss(*(x[i] for x in parts), itself=itself[i], over="positives") for i in range(3)]
    np.testing.assert_allclose(together, np.sum(jax.device_get(alone), 0), rtol=1e-6)


@pytest.mark.parametrize(("fsdp", "form"), [(1, "negatives"), (2, "all")])
def test_eight_devices_equal_one(fsdp, form):
    """Rows over the whole mesh, a number of them that no device count divides, and eight images by themselves."""
    mesh = make_mesh(8 // fsdp, fsdp)
    options = dict(num_classes=4, form=form, block=24)
    function = jax.value_and_grad(functools.partial(mean, **options), (0, 1))
    sharded = problem(n=64, m=96)
    uneven = problem(n=35, m=51)
    images = tuple(x.reshape(8, -1, *x.shape[1:]) for x in sharded)
    for inputs, placing in ((sharded, batch_sharding(mesh)), (uneven, replicated(mesh)), (images, batch_sharding(mesh))):
        expected = jax.jit(function)(*inputs)
        with jax.set_mesh(mesh):
            got = jax.jit(function)(*(jax.device_put(x, placing) for x in inputs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)
