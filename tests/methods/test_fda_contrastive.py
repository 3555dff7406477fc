"""Model 2's own: what its terms are, what leaves the state, what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import CONTRASTIVE, Plain, Tiny, optimizer

from segjax.errors import ConfigError
from segjax.methods import fda_contrastive
from segjax.nets.apply import to_float, train_forward
from segjax.nets.enet import ENet
from segjax.ops.contrastive import supervised_contrastive
from segjax.ops.fourier import amplitude_transfer
from segjax.ops.resize import bilinear


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 2, 16, 24, 3), np.uint8)
    label = rng.integers(0, 5, (2, 2, 16, 24)).astype(np.uint8)
    label[:, :, :3] = 255
    return {"source_image": image[0], "source_label": label[0], "target_image": image[1], "target_label": label[1]}


def make(**options):
    return fda_contrastive.make(model=options.pop("model", Tiny()), optimizer=optimizer(), **options)


KINDS = {
    "late": dict(samples=50, contrast_start=1, target_ce_weight=2.0, target_ce_start=1, jitter=0.3),
    "target": dict(samples=50, statistics="target"),
    "everything": CONTRASTIVE,
}


@functools.cache
def compiled(kind):
    """The method's jitted init and step: one of each for all tests."""
    method = make(**KINDS[kind])
    return jax.jit(method.init), jax.jit(method.step)


def test_the_contrastive_term_is_that_of_the_up_sampled_logits_at_the_same_places_in_both_views(batch):
    """With so many samples that the mean over them is the mean over all pixels, against the loss of every pixel of every image."""
    model = Plain()
    method = make(model=model, beta=0.1, samples=4_000, entropy_weight=0.0)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(method.step)(state, (), batch)
    source, target = to_float(batch["source_image"]), to_float(batch["target_image"])

    @jax.jit
    def alone(image, stylized, label):
        views = []
        for view in (image, stylized):
            outputs, _ = train_forward(model, state.params, {}, view[None], None)
            pixels = bilinear(outputs["logits"], (16, 24)).reshape(-1, 5)
            views.append(pixels / jnp.linalg.norm(pixels, axis=-1, keepdims=True))
        ids = label.reshape(-1)
        total, count = supervised_contrastive(*views, ids, ids, num_classes=5, form="negatives")
        return total / count

    images = zip(target, jax.jit(lambda a, b: amplitude_transfer(a, b, 0.1))(target, source), batch["target_label"], strict=True)
    # sampled with replacement, the number of negatives is that of the samples: their share of the denominator grows alike
    expected = [alone(*each) + np.log(4_000 / 384) for each in images]
    assert float(metrics["loss/contrast"]) == pytest.approx(np.mean(expected), rel=0.02)


def test_the_head_and_the_bank_stay_in_training(batch):
    init, step = compiled("everything")
    state = init(jax.random.key(0), batch)
    assert (
        "projection" in state.params and "projection" not in state.variables["params"] and "projection" not in state.ema_variables["params"]
    )
    again = state.with_variables(jax.tree.map(lambda x: x + 1, state.variables))
    np.testing.assert_array_equal(again.params["projection"]["hidden"]["kernel"], state.params["projection"]["hidden"]["kernel"])
    np.testing.assert_array_equal(again.params["conv1"]["kernel"], state.params["conv1"]["kernel"] + 1)
    after, _ = step(state, (), batch)
    assert np.all(np.asarray(state.bank.label) == 255) and np.sum(np.asarray(after.bank.label) != 255) == 80  # 2 images x 40 samples
    assert np.any(after.params["projection"]["hidden"]["kernel"] != state.params["projection"]["hidden"]["kernel"])


def test_terms_wait_for_their_steps_and_weigh_what_they_are_told(batch):
    init, step = compiled("late")
    state, first = step(init(jax.random.key(0), batch), (), batch)
    _, second = step(state, (), batch)
    assert first["loss/contrast"] == 0 == first["loss/target_ce"] and second["loss/contrast"] > 0 and second["loss/target_ce"] > 0
    assert first["target/labelled"] == pytest.approx(np.mean(batch["target_label"] != 255))


def test_statistics_of_the_plain_target_alone(batch):
    """The running mean of the first layer moves towards the plain target's, whatever the other views are."""
    means = {}
    for kind in ("late", "target"):  # statistics "joint" and "target"
        init, step = compiled(kind)
        state = init(jax.random.key(0), batch)
        means[kind] = np.asarray(step(state, (), batch)[0].batch_stats["norm1"]["mean"])
    seen = jax.jit(lambda state, image: train_forward(Tiny(), state.params, state.batch_stats, to_float(image), jax.random.key(0))[1])
    means["alone"] = np.asarray(seen(state, batch["target_image"])["norm1"]["mean"])
    np.testing.assert_allclose(means["target"], means["alone"], atol=1e-6)
    assert np.max(np.abs(means["late"] - means["alone"])) > 1e-3


@pytest.mark.parametrize("kind", ["target", "everything"])
def test_an_unlabelled_image_costs_nothing_and_breaks_nothing(batch, kind):
    empty = {**batch, "target_label": np.full_like(batch["target_label"], 255)}
    init, step = compiled(kind)
    state, metrics = step(init(jax.random.key(0), batch), (), empty)
    assert metrics["loss/contrast"] == 0 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params)))


def test_enet_of_the_seed_has_its_parameters():
    shapes = jax.eval_shape(lambda: ENet(19, embedding=64).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 359_356


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"form": "some"}, "form='some'"),
        ({"embedding": "pixels"}, "embedding='pixels'"),
        ({"memory": 10}, "keys='batch'"),
        ({"samples": 0}, "samples=0"),
        ({"contrast_weight": 0.0, "entropy_weight": 0.0, "statistics": "target"}, "statistics='target'"),
    ],
)
def test_impossible_options_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        make(**options)


def test_what_the_data_or_the_network_lack_is_told(batch):
    method = make(samples=50)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(ConfigError, match="data.target_labels=True"):
        jax.eval_shape(method.step, state, (), {name: value for name, value in batch.items() if name != "target_label"})
    with pytest.raises(ConfigError, match="logits alone"):
        jax.eval_shape(make(model=Plain(), embedding="features").init, jax.random.key(0), batch)
