"""The self-training step: its terms, labels and centroids by hand, one compiled call in two dtypes, the target's statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import CENTROIDS, Tiny, copied, make_batch, optimizer

from segjax.errors import ConfigError
from segjax.methods import diga_selftrain
from segjax.nets.apply import to_float, train_forward
from segjax.nets.layers import Conv
from segjax.ops import mixing
from segjax.ops.resize import bilinear
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import compile_step


class Small(nn.Module):
    """Neither BatchNorm nor dropout, so that a pass can be done again by hand."""

    num_classes: int = 5
    align_corners: bool = True

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(Conv(8, (3, 3), 2, name="conv")(image))
        return {"logits": Conv(self.num_classes, (1, 1), name="last")(x), "features": x}


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def make(model, **options):
    return diga_selftrain.make(**{"model": model, "optimizer": optimizer(0.02), "beta": 0.1, **options})


def cross_entropy(log_p, label):
    """Sum over the labelled pixels over the number of all, as the released code divides."""
    chosen = np.take_along_axis(np.asarray(log_p), np.minimum(label, 4)[..., None].astype(int), -1)[..., 0]
    return -np.sum(np.where(label < 5, chosen, 0)) / label.size


def test_terms_labels_and_centroids_by_hand(batch):
    model = Small()
    centroids = {"centroids": np.random.default_rng(6).normal(size=(5, 8)).astype(np.float32), "counts": CENTROIDS["counts"]}
    same = dict(second_view="translated", translator="identity", view_share=0.0)  # every view is the image
    method = make(model, **same, centroid_momentum=0.1, mix_weight=0.5)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    after, metrics = jax.jit(method.step)(state, {"centroids": centroids}, batch)

    source, target = (batch[f"{role}_image"] / np.float32(255) for role in ("source", "target"))
    label, size = batch["source_label"], (24, 36)

    @jax.jit
    def answer(image):
        outputs = model.apply({"params": state.params}, image)
        distance = jnp.linalg.norm(outputs["features"][..., None, :] - centroids["centroids"], axis=-1)
        weights = jax.nn.softmax(-distance.at[..., 2].set(jnp.inf))  # class 2: no image of the earlier stage held it
        full = {name: bilinear(value, size, align_corners=True) for name, value in (("logits", outputs["logits"]), ("weights", weights))}
        return outputs, jax.nn.log_softmax(full["logits"]), jnp.argmax(full["weights"], -1)

    (outputs, log_p, _), (on_target, _, closest) = (jax.device_get(answer(image)) for image in (source, target))
    pseudo = np.where(closest == batch["target_label"], batch["target_label"], 255)
    assert 0.05 < np.mean(pseudo != 255) < 0.5
    assert float(metrics["consensus/share"]) == pytest.approx(np.mean(pseudo != 255))

    mask = np.asarray(jax.jit(lambda state: mixing.cross_domix_mask(jax.random.split(state.step_key(), 5)[2], label, 5))(state))
    mix, mix_label = np.where(mask[..., None], source, target), np.where(mask, label, pseudo)
    expected = {
        "loss/ce": cross_entropy(log_p, label),
        "loss/mix": 0.5 * cross_entropy(answer(mix)[1], mix_label),
        "loss/distill": -0.25 * 1.5 * np.mean(np.sum(np.exp(log_p) * log_p, -1)),  # at the first step the teacher is the student
    }
    assert {name for name in metrics if name.startswith("loss/")} == set(expected)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4), name

    moved = centroids["centroids"].copy()
    for found, known in ((on_target, pseudo), (outputs, label)):
        answers = np.argmax(found["logits"], -1)
        agreed = np.where(answers == known[:, ::2, ::2], answers, 255)
        for image, feature in zip(agreed, np.asarray(found["features"]), strict=True):
            for k in range(5):
                if (image == k).sum() >= 5:
                    moved[k] += 0.1 * (feature[image == k].mean(0) - moved[k])
    assert np.abs(moved - centroids["centroids"]).max() > 0.05
    np.testing.assert_allclose(after.centroids, moved, atol=1e-5)


@pytest.fixture(scope="module")
def first(batch):
    """The state that every method starts from here, and the statistics that the plain target images give it."""
    state, model = jax.jit(make(Tiny()).init)(jax.random.key(3), batch), Tiny()
    seen = jax.jit(lambda image: train_forward(model, state.params, state.batch_stats, image, None)[1])
    return state, jax.device_get(seen(to_float(batch["target_image"])))


@pytest.mark.parametrize(
    ("dtype", "options", "loss"),
    [("float32", {"statistics": "target"}, 1.4810), ("bfloat16", {"statistics": "joint", "second_view": "translated"}, 1.4892)],
)
def test_the_whole_step_is_one_compiled_call(dtype, options, loss, batch, first):
    """Twelve steps of one trace; between the batch's way in and the metrics' way out nothing moves between host and device.

    loss: the first step's, in float32.
    """
    traces, model = [], Tiny(dtype=jnp.dtype(dtype))
    method = make(model, **options)

    def step(*arguments):
        traces.append(1)
        return method.step(*arguments)

    mesh = meshes.make_mesh(1)
    state, seen = first
    state = jax.device_put(copied(state), meshes.replicated(mesh))
    frozen = jax.device_put({"centroids": CENTROIDS}, meshes.replicated(mesh))
    spec = meshes.with_shardings(jax.eval_shape(lambda: state), jax.tree.map(lambda _: meshes.replicated(mesh), state))
    compiled, _ = compile_step(method._replace(step=step), spec, frozen, meshes.batch_spec(batch, mesh), mesh)
    given, history, after = meshes.put_batch(batch, mesh), [], None
    with jax.transfer_guard("disallow"):
        for number in range(12):
            state, metrics = compiled(state, frozen, given)
            history.append(metrics)
            after = copied(state.batch_stats) if number == 0 else after
    assert len(traces) == 1 and int(state.step) == 12
    losses = [float(row["loss/ce"]) for row in history]
    assert losses[0] == pytest.approx(loss, abs=2e-3) and np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.ema_params, state.batch_stats)))
    alone = [np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*map(jax.tree.leaves, jax.device_get((after, seen))), strict=True)]
    assert all(alone) if options["statistics"] == "target" else not any(alone)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "agreement"}, "selection='agreement'"),
        ({"statistics": "source"}, "statistics='source'"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"hard": (0.7,)}, "hard"),
        ({"second_view": "mixed"}, "second_view='mixed'"),
    ],
)
def test_values_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=words):
        make(Small(), **options)


def test_what_a_stage_has_to_bring(batch):
    method = make(Small())
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    without = {key: value for key, value in batch.items() if key != "target_label"}
    frozen = {"centroids": {"centroids": np.zeros((5, 9), np.float32), "counts": np.ones(5, np.float32)}}
    for given, held, words in (((), batch, "needs class centroids"), (frozen, batch, r"\(5, 9\)"), (frozen, without, "target_labels=True")):
        with pytest.raises(ConfigError, match=words):
            jax.eval_shape(method.step, state, given, held)
    with pytest.raises(ConfigError, match="8 source and 4 target"):
        jax.eval_shape(method.step, state, frozen, {**batch, "target_image": batch["target_image"][:4]})
