"""The translator's training over eight devices, against its losses written out on one; what it leaves, what it refuses.

Its kernels here are of 3x3 (of 7x7, 5x5 and 4x4 they are in tests/nets/test_translator.py and test_diga_run.py), judges have two layers,
VGG19 the five that are looked at (all of them: tests/nets/test_perceptual.py): taps are most of a step to compile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import run

from segjax.errors import ConfigError
from segjax.methods import diga_translator
from segjax.nets import perceptual, translator
from segjax.nets.perceptual import VGG19, WEIGHTS
from segjax.nets.translator import MirrorConv, Translator, to_image
from segjax.nets.translator_cycle import PatchDiscriminator, TranslatorCycle
from segjax.ops.label_edges import label_edges
from segjax.runtime import mesh as meshes

RATE, VGG = 1.2e-2, VGG19((2, 3, 4, 4, 4))
SMALL = dict(model=Translator(4, 1), judge_width=4, judge_scales=2)
JUDGE = functools.partial(PatchDiscriminator, layers=2)


@pytest.fixture(scope="module")
def method():
    """Plain steps: what they move the weights by is the gradient."""
    small = lambda features, kernel_size, stride=1, padding=1, **more: MirrorConv(features, 3, stride, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translator, "MirrorConv", small)
        patch.setattr(diga_translator, "PatchDiscriminator", JUDGE)
        patch.setattr(perceptual, "CONVS", tuple((first,) for first, *_ in perceptual.CONVS))
        yield diga_translator.make(optimizer=optax.sgd(RATE), perceptual_weight=0.1, **SMALL)


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
    np.testing.assert_array_equal(jax.jit(label_edges)(label), expected)


def drawn(shapes):
    """Weights as `Conv` draws them, without a program for it."""
    rng = np.random.default_rng(3)
    draw = lambda shape: rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))
    return jax.tree.map(lambda leaf: draw(leaf.shape) if leaf.ndim > 2 else np.zeros(leaf.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def vgg(method):
    return drawn(jax.eval_shape(VGG.init, jax.random.key(2), jnp.zeros((1, 32, 32, 3)))["params"])


@pytest.fixture(scope="module")
def before(batch, method):
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.replace(key=None))
    return zeros.replace(key=jax.random.key(0), params=drawn(shapes.params), judges=drawn(shapes.judges))


@pytest.fixture(scope="module")
def learned(batch, vgg, before, method):
    """Over eight devices: the weights that one step leaves, the state that ten leave, one dict of floats a step."""
    told = dict(mesh=meshes.make_mesh(2, 4), frozen={"vgg": {"params": vgg}})
    one, history = run(method, batch, 1, state=before, **told)
    kept = jax.device_get((one.params, one.judges))
    ten, rest = run(method, batch, 9, state=one, **told)
    return kept, jax.device_get(ten.replace(key=None)), history + rest


@pytest.fixture(scope="module")
def by_hand(batch, vgg, method):
    """Of weights: every image of a cycle, what discriminators lose by them with its gradient, what new ones make of them; one program."""
    judge = lambda params, image: JUDGE(4, scales=2).apply({"params": params}, image)

    def judged(judges, images):
        total = 0.0
        for domain, made in (("target", "source_to_target"), ("source", "target_to_source")):
            for found in judge(judges[domain], jnp.concatenate([images[domain], images[made]])):
                total += jnp.mean((found[:8] - 1) ** 2) + jnp.mean(found[8:] ** 2)
        return total

    @jax.jit
    def found(params, judges, new):
        images = (batch[f"{role}_image"] / np.float32(255) for role in ("source", "target"))
        images = TranslatorCycle(4, 1).apply({"params": params}, *images)
        made = [*judge(new["target"], images["source_to_target"]), *judge(new["source"], images["target_to_source"])]
        seen = jnp.concatenate([images[name] for name in ("source_to_target", "source", "target_to_source", "target")])
        features = VGG.apply({"params": vgg}, seen)
        return images, *jax.value_and_grad(judged)(judges, images), made, features, label_edges(batch["source_label"])

    return lambda *weights: jax.device_get(found(*weights))


def terms(images, made, features, edges):
    """The weighted terms of the translators' loss, in float64."""
    mean = lambda a: np.mean(a, dtype=np.float64)
    distance = lambda a, b: mean(np.abs(images[a] - images[b]))
    far = lambda x: mean(np.abs(x[:8] - x[8:16])) + mean(np.abs(x[16:24] - x[24:]))
    return {
        "loss/adversarial": 0.5 * sum(mean((each - 1) ** 2) for each in made),
        "loss/cycle": 10 * (distance("source_cycle", "source") + distance("target_cycle", "target")),
        "loss/self": 0.001 * (distance("source_again", "source") + distance("target_again", "target")),
        "loss/edge": 20 * mean(np.abs(images["source_to_target"] * edges - images["source"] * edges)),
        "loss/perceptual": 0.1 * sum(w * far(x) for w, x in zip(WEIGHTS, features, strict=True)),
    }


def test_the_terms_and_their_order(before, learned, by_hand):
    """Against the same losses written out: discriminators first, the translators judged by the new ones."""
    (_, new), _, (metrics, *_) = learned
    images, value, slope, made, features, edges = by_hand(before.params, before.judges, new)
    assert metrics["judges/loss"] == pytest.approx(float(value), rel=1e-4)
    for old, after, grad in zip(jax.tree.leaves(before.judges), jax.tree.leaves(new), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(after, old - RATE * grad, atol=1e-6)
    expected = terms(images, made, features, edges[..., None])
    assert {name for name in metrics if name.startswith("loss/")} == set(expected)
    for name, term in expected.items():
        assert metrics[name] == pytest.approx(float(term), rel=1e-4), name


def test_the_translators_go_down_the_slope_of_their_terms(before, learned, by_hand):
    """A step is RATE times the gradient: along it the terms rise by its length, in each of the four halves.

    A translator's slope turns quickly: at a hundredth of a gradient's length the differences are another number.
    """
    (after, new), _, (metrics, *_) = learned

    def total(params):
        images, _, _, made, features, edges = by_hand(params, before.judges, new)
        return sum(terms(images, made, features, edges[..., None]).values())

    size = lambda tree: np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))
    gradient = jax.tree.map(lambda old, new: (old - new) / np.float32(RATE), before.params, after)
    assert metrics["gradient_norm"] == pytest.approx(size(gradient), rel=1e-3)
    for half, slope in gradient.items():
        at = lambda by, half=half, slope=slope: jax.tree.map(lambda x, g: x + np.float32(by / size(slope)) * g, before.params[half], slope)
        one, other = (total({**before.params, half: at(by)}) for by in (1e-5, -1e-5))
        assert (one - other) / 2e-5 == pytest.approx(size(slope), rel=0.03), half


def test_the_cycle_closes_and_one_translator_is_kept(batch, learned, by_hand, method):
    _, state, history = learned
    assert history[-1]["loss/cycle"] < 0.8 * history[0]["loss/cycle"] and int(state.step) == 10
    translated = jax.jit(method.predict)(state, (), batch["source_image"])
    images, *_ = by_hand(state.params, state.judges, state.judges)
    np.testing.assert_allclose(translated, to_image(images["source_to_target"]), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state.ema_variables, state.variables)
    assert jax.tree.structure(state.ema_variables["params"]) == jax.tree.structure(
        jax.eval_shape(Translator(4, 1).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    )


def test_weights_of_a_translator_replace_one_direction(before):
    state = before
    other = state.replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    mixed = state.with_variables(other.variables)
    for name, kept in {"encoder_source": other, "decoder_target": other, "encoder_target": state, "decoder_source": state}.items():
        for a, b in zip(jax.tree.leaves(mixed.params[name]), jax.tree.leaves(kept.params[name]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_a_stage_has_to_bring(batch, method):
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(ConfigError, match="needs VGG19"):
        jax.eval_shape(method.step, state, (), batch)
    with pytest.raises(ConfigError, match="8 source and 4 target"):
        jax.eval_shape(method.step, state, (), {**batch, "target_image": batch["target_image"][:4]})
