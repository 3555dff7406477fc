"""The translator's training: what its terms are and in which order it steps, one device and eight, what it leaves, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import fresh, run

from segjax.errors import ConfigError
from segjax.methods import diga_translator
from segjax.nets.perceptual import VGG19, WEIGHTS
from segjax.nets.translator import Translator, to_image
from segjax.nets.translator_cycle import PatchDiscriminator, TranslatorCycle
from segjax.ops.label_edges import label_edges
from segjax.runtime import mesh as meshes

RATE, VGG = 3e-3, VGG19((2, 3, 4, 4, 4))
SMALL = dict(model=Translator(4, 1), judge_width=4, judge_scales=2)
# Plain steps: Adam would make one of a gradient that is noise, that of the bias before a norm.
METHOD = diga_translator.make(optimizer=optax.sgd(RATE), perceptual_weight=0.1, **SMALL)


def cycle(params, batch):
    """Every image that a cycle makes of a batch."""
    images = (batch[f"{role}_image"] / np.float32(255) for role in ("source", "target"))
    return jax.jit(TranslatorCycle(4, 1).apply)({"params": params}, *images)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (8, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    image = (label[..., None] * 50 + rng.integers(0, 30, (8, 32, 32, 3))).astype(np.uint8)
    return {"source_image": image, "source_label": label, "target_image": (image[::-1] // 2 + 20).astype(np.uint8)}


def test_edges_are_where_the_laplacian_of_the_ids_says():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (2, 4, 5)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    label[0, :3, :5], label[1, 9, 9] = 255, 2
    kernel = np.ones((5, 5))
    kernel[2, 2] = -24
    padded = np.pad(label.astype(float), ((0, 0), (2, 2), (2, 2)), "reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (1, 2))
    expected = np.abs((windows * kernel / 48).sum((-1, -2))) > 0.1
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(label_edges(label), expected)


@pytest.fixture(scope="module")
def vgg():
    return jax.jit(VGG.init)(jax.random.key(2), jnp.zeros((1, 32, 32, 3)))["params"]


@pytest.fixture(scope="module")
def one_step(batch, vgg):
    """(state, that after a step on one device, its metrics)."""
    after, history = run(METHOD, batch, 1, meshes.make_mesh(1), frozen={"vgg": {"params": vgg}})
    return fresh(METHOD, batch), after, history[0]


def test_the_terms_and_their_order(batch, vgg, one_step):
    """Against the same losses written out: discriminators first, the translators judged by the new ones."""
    state, after, metrics = one_step
    judge = lambda params, image: PatchDiscriminator(4, scales=2).apply({"params": params}, image)
    vgg_of = lambda image: VGG.apply({"params": vgg}, image)

    def judged(judges, images):
        real = [*judge(judges["target"], images["target"]), *judge(judges["source"], images["source"])]
        made = [*judge(judges["target"], images["source_to_target"]), *judge(judges["source"], images["target_to_source"])]
        return sum(jnp.mean((a - 1) ** 2) + jnp.mean(b**2) for a, b in zip(real, made, strict=True))

    @jax.jit
    def found(judges, new, images):
        made = [*judge(new["target"], images["source_to_target"]), *judge(new["source"], images["target_to_source"])]
        pairs = [(vgg_of(images[a]), vgg_of(images[b])) for a, b in (("source_to_target", "source"), ("target_to_source", "target"))]
        return *jax.value_and_grad(judged)(judges, images), made, pairs, label_edges(batch["source_label"])

    images = cycle(state.params, batch)
    value, slope, made, pairs, edges = jax.device_get(found(state.judges, after.judges, images))
    assert metrics["judges/loss"] == pytest.approx(float(value), rel=1e-4)
    for old, new, grad in zip(jax.tree.leaves(state.judges), jax.tree.leaves(after.judges), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(new, old - RATE * grad, atol=1e-6)
    images, edges = jax.device_get(images), edges[..., None]
    distance = lambda a, b: np.mean(np.abs(images[a] - images[b]))
    expected = {
        "loss/adversarial": 0.5 * sum(np.mean((each - 1) ** 2) for each in made),
        "loss/cycle": 10 * (distance("source_cycle", "source") + distance("target_cycle", "target")),
        "loss/self": 0.001 * (distance("source_again", "source") + distance("target_again", "target")),
        "loss/edge": 20 * np.mean(np.abs(images["source_to_target"] * edges - images["source"] * edges)),
        "loss/perceptual": 0.1 * sum(w * np.mean(np.abs(a - b)) for pair in pairs for w, a, b in zip(WEIGHTS, *pair, strict=True)),
    }
    assert {name for name in metrics if name.startswith("loss/")} == set(expected)
    for name, term in expected.items():
        assert metrics[name] == pytest.approx(float(term), rel=1e-4), name


def test_one_device_and_eight(batch, vgg, one_step):
    many, other = run(METHOD, batch, 1, meshes.make_mesh(2, 4), frozen={"vgg": {"params": vgg}})
    before, one, metrics = one_step
    for key, value in metrics.items():
        assert key == "gradient_norm" or value == pytest.approx(other[0][key], rel=1e-5), key
    flat = lambda state: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get((state.params, state.judges)))])
    one, many, before = (flat(state) for state in (one, many, before))
    assert np.linalg.norm(one - many) < 0.01 * np.linalg.norm(one - before)  # of the step: where two images are equal, |.| has either slope


def test_the_cycle_closes_and_one_translator_is_kept(batch, vgg):
    state, history = run(METHOD, batch, 10, meshes.make_mesh(1), frozen={"vgg": {"params": vgg}})
    assert history[-1]["loss/cycle"] < 0.8 * history[0]["loss/cycle"] and int(state.step) == 10
    translated = jax.jit(METHOD.predict)(state, (), batch["source_image"])
    np.testing.assert_allclose(translated, to_image(jax.device_get(cycle(state.params, batch)["source_to_target"])), atol=1e-5)
    again = jax.jit(Translator(4, 1).apply)(state.ema_variables, batch["source_image"] / np.float32(255))
    np.testing.assert_allclose(translated, again, atol=1e-6)


def test_weights_of_a_translator_replace_one_direction(batch):
    state = fresh(METHOD, batch)
    other = state.replace(params=jax.tree.map(lambda leaf: leaf + 1, jax.device_get(state.params)))
    mixed = state.with_variables(other.variables)
    for name, kept in {"encoder_source": other, "decoder_target": other, "encoder_target": state, "decoder_source": state}.items():
        for a, b in zip(jax.tree.leaves(mixed.params[name]), jax.tree.leaves(kept.params[name]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_a_stage_has_to_bring(batch):
    state = jax.eval_shape(METHOD.init, jax.random.key(0), batch)
    with pytest.raises(ConfigError, match="needs VGG19"):
        jax.eval_shape(METHOD.step, state, (), batch)
    with pytest.raises(ConfigError, match="8 source and 4 target"):
        jax.eval_shape(METHOD.step, state, (), {**batch, "target_image": batch["target_image"][:4]})
    without = diga_translator.make(optimizer=optax.sgd(RATE), **SMALL)
    assert "loss/perceptual" not in jax.eval_shape(without.step, state, (), batch)[1]
