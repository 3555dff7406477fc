"""The losses of mask classification against the original code's own numbers, closed forms, and across devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax.errors import ConfigError
from segjax.ops import mask_losses
from segjax.ops.mask_losses import PointChoice, Targets, Weights
from segjax.ops.matching import match
from segjax.runtime import mesh as meshes


@functools.cache
def vectors(goldens, seed):
    """The golden as this code takes it: logits of one set, targets, points of every target in its own row, and the arrays."""
    raw = dict(np.load(goldens / f"09c_mask2former_loss_s{seed}.npz"))
    batch, count = raw["in_tgt_label"].shape
    points = raw["rnd_points_over"].shape[1]
    over, extra = np.zeros((batch, count, points, 2), np.float32), np.zeros((batch, count, raw["rnd_points_extra"].shape[1], 2), np.float32)
    where = [(b, t) for b in range(batch) for t in raw["out_match_target"][b] if t >= 0]  # image by image, by ascending query
    for n, (b, t) in enumerate(where):
        over[b, t], extra[b, t] = raw["rnd_points_over"][n], raw["rnd_points_extra"][n]
    logits = raw["in_class_logits"], raw["in_mask_logits"].transpose(0, 2, 3, 1)
    targets = Targets(raw["in_tgt_mask"].transpose(0, 2, 3, 1) > 0, raw["in_tgt_label"].astype(np.int32))
    return logits, targets, PointChoice(raw["rnd_points_match"][None], over[None], extra[None]), where, raw


@jax.jit
def steps(class_logits, mask_logits, targets, choice):
    """Costs, matches, and where the losses look."""
    cost = mask_losses.match_cost(class_logits, mask_logits, targets, choice.match[0], None, Weights())
    query = match(cost, targets.classes >= 0)
    maps = jnp.moveaxis(jnp.take_along_axis(mask_logits, jnp.maximum(query, 0)[:, None, None], 3), 3, 1)
    return cost, query, mask_losses.loss_points(maps.reshape(-1, *maps.shape[2:]), choice.candidates[0], choice.others[0], None)


@pytest.mark.parametrize("seed", [0, 1])
def test_costs_matches_and_points_are_the_originals(goldens, seed):
    (class_logits, mask_logits), targets, choice, where, raw = vectors(goldens, seed)
    cost, query, points = map(np.asarray, steps(class_logits, mask_logits, targets, choice))
    for b in range(len(cost)):
        there = raw["in_tgt_label"][b] >= 0
        np.testing.assert_allclose(cost[b][:, there], raw["out_cost"][b][:, : there.sum()], atol=1e-4)
        pairs = [(q, t) for q, t in zip(raw["out_match_query"][b], raw["out_match_target"][b], strict=True) if t >= 0]
        assert sorted(pairs) == sorted((q, t) for t, q in enumerate(query[b]) if q >= 0)
        total = sum(cost[b][q, t] for q, t in pairs)
        assert abs(total - raw["out_match_cost"][b]) < 2e-4
    np.testing.assert_allclose(np.stack([points[b, t] for b, t in where]), raw["out_points"], atol=5e-6)


@functools.partial(jax.jit, static_argnames="scale")
def golden_losses(logits, targets, choice, scale):
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(logits):
        terms = mask_losses.mask_losses(*logits, targets, choice, weights=scale)
        each = {name: total / weight for name, (total, weight) in terms.items()}
        return sum(each.values()), each

    return run(logits)


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_and_gradients_are_the_originals(goldens, seed):
    """Of two equal sets: every loss comes twice, every set gets the original's gradient."""
    logits, targets, choice, _, raw = vectors(goldens, seed)
    twice = lambda x: np.repeat(np.asarray(x)[None], 2, 0)
    scale = Weights(*raw["par_weights"].tolist())
    choice = jax.tree.map(lambda x: twice(x[0]), choice)
    (total, each), slopes = jax.device_get(golden_losses(jax.tree.map(twice, logits), targets, choice, scale))
    assert abs(each["loss/class"] / scale.category - 2 * raw["out_loss_ce"]) < 4e-5
    assert abs(each["loss/mask"] / scale.mask - 2 * raw["out_loss_mask"]) < 1e-5
    assert abs(each["loss/dice"] / scale.dice - 2 * raw["out_loss_dice"]) < 1e-5
    assert abs(total - 2 * raw["out_total"]) < 2e-4
    for n in range(2):
        np.testing.assert_allclose(slopes[0][n], raw["grad_class_logits"], atol=5e-6)
        np.testing.assert_allclose(slopes[1][n].transpose(0, 3, 1, 2), raw["grad_mask_logits"], atol=5e-7)


SETS, BATCH, QUERIES, CLASSES = 3, 8, 6, 4


def drawn(seed=0):
    """Logits of three sets for eight images, labels with ignored pixels; one image has no label at all."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, CLASSES, (BATCH, 3, 4)), np.ones((8, 8), int))
    label[rng.random(label.shape) < 0.2] = 255
    label[3] = 255
    class_logits = rng.normal(size=(SETS, BATCH, QUERIES, CLASSES + 1)).astype(np.float32)
    return class_logits, 2 * rng.normal(size=(SETS, BATCH, 6, 8, QUERIES)).astype(np.float32), label.astype(np.uint8)


@functools.partial(jax.jit, static_argnames=("ignored",))
def summed(class_logits, mask_logits, label, key, ignored="negative"):
    targets = mask_losses.semantic_targets(label, CLASSES)
    terms = mask_losses.mask_losses(class_logits, mask_logits, targets, key, points=64, ignored=ignored)
    return sum(total / weight for total, weight in terms.values()), terms


def test_one_device_is_eight():
    class_logits, mask_logits, label = drawn()
    key = jax.random.key(0)
    total, terms = summed(class_logits, mask_logits, label, key)
    assert terms["loss/mask"][1] == sum(len(set(np.unique(one)) - {255}) for one in label)
    mesh = meshes.make_mesh()
    put = lambda x, axis: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*(None,) * axis, meshes.AXES)))
    spread, _ = summed(put(class_logits, 1), put(mask_logits, 1), put(label, 0), key)
    assert abs(spread - total) < 1e-5 * abs(total)


def test_ignored_pixels_are_negatives_or_left_out():
    """What stands in ignored pixels of the mask matters in the first case alone."""
    class_logits, mask_logits, label = drawn()
    label[:], label[:, :, :16] = 255, 1
    sure, greedy = np.full_like(mask_logits, 9.0), np.full_like(mask_logits, 9.0)  # greedy takes the ignored half, too
    sure[:, :, :, 4:] = -9.0

    def masks(logits, ignored):
        terms = summed(class_logits, logits, label, jax.random.key(0), ignored=ignored)[1]
        return float(sum(terms[name][0] / terms[name][1] for name in ("loss/mask", "loss/dice"))) / SETS

    negative, left_out = ([masks(logits, ignored) for logits in (sure, greedy)] for ignored in ("negative", "left_out"))
    assert negative[1] > 15 > 5 > negative[0]
    assert left_out[1] < 0.01 and left_out[0] < negative[0]
    with pytest.raises(ConfigError, match="ignored='no': expected 'negative'"):
        summed(class_logits, mask_logits, label, jax.random.key(0), ignored="no")


def test_left_out_equals_a_sum_over_the_known_points():
    rng = np.random.default_rng(2)
    logits, target, weight = rng.normal(size=(3, 50)) * 3, rng.random((3, 50)), rng.integers(0, 2, (3, 50)) * 1.0
    bce, dice = jax.jit(mask_losses.point_losses)(*(x.astype(np.float32) for x in (logits, target, weight)))
    for n in range(3):
        z, t = logits[n][weight[n] > 0], target[n][weight[n] > 0]
        p = 1 / (1 + np.exp(-z))
        np.testing.assert_allclose(bce[n], np.mean(-t * np.log(p) - (1 - t) * np.log(1 - p)), rtol=1e-5)
        np.testing.assert_allclose(dice[n], 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1), rtol=1e-5)


def test_a_diverged_network_still_finds_its_matches():
    class_logits, mask_logits, label = drawn(1)
    broken = class_logits.copy()
    broken[0, 0] = np.nan
    total, terms = summed(broken, mask_logits, label, jax.random.key(0))
    assert np.isnan(total) and np.isfinite(terms["loss/dice"][0])


def test_unlabelled_batches_cost_their_classes_alone():
    class_logits, mask_logits, label = drawn()
    terms = summed(class_logits, mask_logits, np.full_like(label, 255), jax.random.key(0))[1]
    assert terms["loss/mask"][0] == 0 == terms["loss/dice"][0] and terms["loss/mask"][1] == 1
    want = -np.log(np.exp(class_logits)[..., -1] / np.exp(class_logits).sum(-1)).mean((1, 2)).sum() * 2
    np.testing.assert_allclose(terms["loss/class"][0] / terms["loss/class"][1], want, rtol=1e-5)
