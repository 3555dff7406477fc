"""The translator's training: what its terms are and in which order it steps, one device and eight, what it leaves, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import run

from segjax.errors import ConfigError
from segjax.methods import diga_translator
from segjax.nets.perceptual import VGG19, WEIGHTS
from segjax.nets.translator import Translator, to_image
from segjax.nets.translator_cycle import PatchDiscriminator, TranslatorCycle
from segjax.ops.label_edges import label_edges
from segjax.runtime import mesh as meshes
from segjax.runtime.optim import make_optimizer

ADAM = make_optimizer(name="adam", lr=2e-3, betas=(0.5, 0.999), schedule="poly", power=0.9, total_steps=100)
SMALL = dict(model=Translator(4, 1), judge_width=4, judge_scales=2)


def make(**options):
    return diga_translator.make(**{"optimizer": ADAM, **SMALL, **options})


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


def test_the_terms_and_their_order(batch):
    """Against the same losses written out: discriminators first, the translators judged by the new ones."""
    method = make(optimizer=optax.sgd(1e-2))
    state = jax.jit(method.init)(jax.random.key(0), batch)
    images = cycle(state.params, batch)
    judge = jax.jit(lambda params, image: PatchDiscriminator(4, scales=2).apply({"params": params}, image))

    def judged(judges):
        real = [*judge(judges["target"], images["target"]), *judge(judges["source"], images["source"])]
        made = [*judge(judges["target"], images["source_to_target"]), *judge(judges["source"], images["target_to_source"])]
        return sum(jnp.mean((a - 1) ** 2) + jnp.mean(b**2) for a, b in zip(real, made, strict=True))

    value, slope = jax.jit(jax.value_and_grad(judged))(state.judges)
    after, metrics = jax.jit(method.step)(state, (), batch)
    assert float(metrics["judges/loss"]) == pytest.approx(float(value), rel=1e-4)
    for old, new, grad in zip(jax.tree.leaves(state.judges), jax.tree.leaves(after.judges), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(new, old - 1e-2 * grad, atol=1e-6)
    made = [*judge(after.judges["target"], images["source_to_target"]), *judge(after.judges["source"], images["target_to_source"])]
    distance = lambda a, b: jnp.mean(jnp.abs(images[a] - images[b]))
    edges = label_edges(batch["source_label"])[..., None]
    expected = {
        "loss/adversarial": 0.5 * sum(jnp.mean((found - 1) ** 2) for found in made),
        "loss/cycle": 10 * (distance("source_cycle", "source") + distance("target_cycle", "target")),
        "loss/self": 0.001 * (distance("source_again", "source") + distance("target_again", "target")),
        "loss/edge": 20 * jnp.mean(jnp.abs(images["source_to_target"] * edges - images["source"] * edges)),
    }
    assert {name for name in metrics if name.startswith("loss/")} == set(expected)
    for name, term in expected.items():
        assert float(metrics[name]) == pytest.approx(float(term), rel=1e-4), name


def test_one_device_and_eight(batch):
    slow = make(optimizer=optax.sgd(1e-3))  # Adam would make a step of a gradient that is noise, the bias before a norm
    one, history = run(slow, batch, 2, meshes.make_mesh(1))
    many, other = run(slow, batch, 2, meshes.make_mesh(2, 4))
    for mine, theirs in zip(history, other, strict=True):
        for key in mine:
            assert key == "gradient_norm" or mine[key] == pytest.approx(theirs[key], rel=1e-4), key
    for a, b in zip(jax.tree.leaves((one.params, one.judges)), jax.tree.leaves((many.params, many.judges)), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4)  # of a step of up to 1e-2: a unit at its kink may fall to either side


def test_the_cycle_closes_and_one_translator_is_kept(batch):
    state, history = run(make(), batch, 12, meshes.make_mesh(1))
    assert history[-1]["loss/cycle"] < 0.8 * history[0]["loss/cycle"] and int(state.step) == 12
    translated = jax.jit(make().predict)(state, (), batch["source_image"])
    np.testing.assert_allclose(translated, to_image(cycle(state.params, batch)["source_to_target"]), atol=1e-5)
    again = jax.jit(Translator(4, 1).apply)(state.ema_variables, batch["source_image"] / np.float32(255))
    np.testing.assert_allclose(translated, again, atol=1e-6)


def test_weights_of_a_translator_replace_one_direction(batch):
    state, other = (jax.jit(make().init)(jax.random.key(n), batch) for n in (0, 1))
    mixed = state.with_variables(other.variables)
    for name, kept in {"encoder_source": other, "decoder_target": other, "encoder_target": state, "decoder_source": state}.items():
        for a, b in zip(jax.tree.leaves(mixed.params[name]), jax.tree.leaves(kept.params[name]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_perceptual_term(batch):
    vgg = VGG19((2, 3, 4, 4, 4))
    params = vgg.init(jax.random.key(2), jnp.zeros((1, 32, 32, 3)))["params"]
    method = make(perceptual_weight=0.1)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(method.step)(state, {"vgg": {"params": params}}, batch)
    images = cycle(state.params, batch)
    total = 0
    for made, content in (("source_to_target", "source"), ("target_to_source", "target")):
        features = [jax.jit(vgg.apply)({"params": params}, images[name]) for name in (made, content)]
        total += sum(w * np.mean(np.abs(a - b)) for w, a, b in zip(WEIGHTS, *features, strict=True))
    assert float(metrics["loss/perceptual"]) == pytest.approx(0.1 * total, rel=1e-4)
    with pytest.raises(ConfigError, match="needs VGG19"):
        jax.eval_shape(method.step, state, (), batch)


def test_unequal_batches_are_refused(batch):
    state = jax.eval_shape(make().init, jax.random.key(0), batch)
    with pytest.raises(ConfigError, match="8 source and 4 target"):
        jax.eval_shape(make().step, state, (), {**batch, "target_image": batch["target_image"][:4]})
