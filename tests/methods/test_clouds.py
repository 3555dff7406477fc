"""CLOUDS: both stages on a tiny network and a tiny SAM: one trace, no transfer, any mesh, restart, teacher, switches.

Of a CLIP ConvNeXt and a MobileSAM the whole of it runs in tests/verbs/test_clouds_run.py.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.typing import DTypeLike
from test_contract import Tiny, copied, run

from segjax.errors import ConfigError
from segjax.methods import clouds, clouds_warmup
from segjax.nets import label_refiner
from segjax.nets.efficient_sam import EfficientSam
from segjax.nets.initial import shapes
from segjax.nets.label_refiner import encode
from segjax.nets.layers import BatchNorm, Conv
from segjax.nets.mask2former import Mask2Former
from segjax.nets.sam import Sam
from segjax.ops.two_views import apart, side_by_side
from segjax.runtime import mesh as meshes
from segjax.runtime.state import TrainState
from segjax.typing import IGNORE


class Maps(nn.Module):
    """A backbone's four maps of an image by a convolution each, and statistics of batches: its kinds have tests of their own."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image, train=False):
        maps = [BatchNorm(dtype=self.dtype, name="norm")(Conv(8, (4, 4), 4, padding=0, dtype=self.dtype, name="stem")(image), train)]
        for n in range(3):
            maps.append(nn.relu(Conv(16, (2, 2), 2, padding=0, dtype=self.dtype, name=f"conv{n}")(maps[-1])))
        return maps


HEAD: dict = dict(channels=32, mask_channels=8, decoder_channels=32, heads=2, encoder_hidden=16, decoder_hidden=16, queries=8)
TINY: dict = dict(num_classes=5, points=1, encoder_layers=1, fpn_levels=0, **HEAD)
NET = Mask2Former(Maps(), frozen=True, decoder_layers=1, **TINY)
SAM = Sam(
    64, 16, embed_dim=8, depth=1, num_heads=1, mlp_dim=8, global_blocks=(0,), features=16, decoder_depth=1, decoder_heads=2, mask_channels=4
)
COMMON: dict = dict(points=48)


def sgd(lr=3e-2):
    """Few operations a parameter: half of what these steps compile would be Adam's."""
    return optax.sgd(lr, momentum=0.9)


def joint(segmenter=SAM, model=NET, **changes):
    options = dict(segmenter=segmenter, min_area=20, places=6, chunk=2, ema_every=3, ema_decay=0.5, **COMMON) | changes
    return clouds.make(model=model, optimizer=sgd(), **options)


@pytest.fixture(scope="module")
def weights():
    """The tiny SAM's variables as a stage's `frozen` has them, drawn by numpy: no program to compile."""
    rng = np.random.default_rng(1)
    draw = lambda path, leaf: rng.normal(float("scale" in str(path[-1])), 0.3, leaf.shape).astype(np.float32)
    return {"segmenter": jax.tree_util.tree_map_with_path(draw, shapes(SAM))}


@pytest.fixture(scope="module")
def batches():
    """Batches whose images are blocks of colours, of another coarseness each; the label is the colour."""
    rng, found = np.random.default_rng(0), []
    for cells in (1, 2, 4):
        label = rng.integers(0, 5, (16, cells, cells)).repeat(32 // cells, 1).repeat(32 // cells, 2).astype(np.uint8)
        image = (label[..., None] * 50 + rng.integers(0, 30, (16, 32, 32, 3))).astype(np.uint8)
        label[:, :3] = IGNORE
        found.append({"source_image": image[:8], "source_label": label[:8], "target_image": image[8:]})
    return found


@pytest.fixture(scope="module")
def steps(weights, batches):
    """20 steps on one device, under the transfer guard: the states before and after each, metrics, step, traces."""
    method, traces = joint(), []

    def counted(*arguments):
        traces.append(len(arguments))
        return method.step(*arguments)

    states, step, history = [jax.jit(method.init)(jax.random.key(3), batches[0])], jax.jit(counted), []
    frozen, on_device = jax.device_put((weights, batches))
    with jax.transfer_guard("disallow"):
        for n in range(20):
            state, metrics = step(states[-1], frozen, on_device[n % 3])
            states.append(state)
            history.append(metrics)
    return states, jax.device_get(history), step, traces, on_device, frozen


def test_one_trace_whatever_is_in_the_labels(steps):
    _, history, _, traces, _, _ = steps
    assert len(traces) == 1
    assert len({float(row["pseudo/prompts"]) for row in history}) > 2
    assert all(np.isfinite(value) for row in history for value in row.values())
    assert min(row["loss/class"] for row in history[3::3]) < 0.97 * history[0]["loss/class"]  # of one batch


def test_restart_equals_no_restart(steps):
    states, _, step, _, on_device, frozen = steps
    state = copied(states[16])
    for n in range(16, 20):
        state, _ = step(state, frozen, on_device[n % 3])
    for a, b in zip(jax.tree.leaves(state.replace(key=0)), jax.tree.leaves(states[20].replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_teachers_head_moves_every_third_step(steps):
    first, last = steps[0][0], steps[0][-1]
    assert set(first.ema_params) == {"pixel_decoder", "decoder"} and not first.ema_batch_stats
    teachers = [jax.tree.leaves(state.ema_params) for state in steps[0]]
    same = [all(map(np.array_equal, *pair)) for pair in zip(teachers[:-1], teachers[1:], strict=True)]
    assert [n for n, kept_still in enumerate(same) if not kept_still] == list(range(3, 20, 3))  # at 0 it copies what it is a copy of
    for a, b in zip(*(jax.tree.leaves(state.params["backbone"]) for state in (first, last)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any("backbone" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(first.opt_state))


def test_eight_devices_give_what_one_gives(weights, batches, steps):
    states, _, step, _, on_device, frozen = steps
    first = jax.device_get(states[0].replace(key=None)).replace(key=copied(states[0].key))
    many, other = run(joint(), batches[2], 2, meshes.make_mesh(2, 4), state=first, frozen=weights)
    state, history = states[0], []
    for _ in range(2):
        state, metrics = step(state, frozen, on_device[2])
        history.append(jax.device_get(metrics))
    for mine, theirs in zip(history, other, strict=True):
        for key in mine:
            assert float(mine[key]) == pytest.approx(theirs[key], rel=1e-4 if key == "gradient_norm" else 1e-5), key
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_half_precision_predicts_nearly_the_same(batches, steps):
    low = dataclasses.replace(NET, dtype=jnp.bfloat16, backbone=dataclasses.replace(NET.backbone, dtype=jnp.bfloat16))
    predict = lambda state, image: [joint(model=model).predict(state, (), image) for model in (NET, low)]
    one, half = jax.jit(predict)(steps[0][0], batches[2]["target_image"])
    assert one.shape == (8, 32, 32, 5) and one.dtype == half.dtype == jnp.float32
    assert 0 < np.abs(one - half).max() < 3e-2 * np.abs(one).max()


def test_the_warm_up_learns(batches, steps):
    """One prediction set, where the joint stage has two: its network is the other's without the layer."""
    batch = {key: value for key, value in batches[2].items() if key != "target_image"}
    model = Mask2Former(Maps(), frozen=True, decoder_layers=0, **TINY)
    method = clouds_warmup.make(model=model, optimizer=sgd(1.5e-2), jitter=(), **COMMON)
    kept = lambda like, tree: {name: kept(part, tree[name]) for name, part in like.items()} if isinstance(like, dict) else tree
    variables = kept(shapes(model), jax.device_get(steps[0][0].variables))
    begin = jax.jit(lambda key, variables: TrainState.create(key, variables, sgd(), fixed=("backbone",)))
    state, history = run(method, batch, 16, meshes.make_mesh(1), state=begin(jax.random.key(3), variables))
    total = lambda row: sum(value for name, value in row.items() if name.startswith("loss"))
    assert total(history[-1]) < 0.75 * total(history[0]) and state.ema_params is None


def unequal(batch):
    """Six source and two generated images."""
    return {name: array[: 2 if name.startswith("target") else 6] for name, array in batch.items()}


def test_features_from_elsewhere_are_not_encoded_again(batches, steps, monkeypatch):
    """Those of another grid are refused. Without a jitter the teacher shares the student's maps."""
    state, frozen, batch = steps[0][0], steps[5], unequal(batches[0])
    features = jax.eval_shape(lambda variables, image: encode(SAM, variables, image), frozen["segmenter"], batch["target_image"])
    monkeypatch.setattr(label_refiner, "encode", lambda *_: pytest.fail("the image was encoded"))
    step = joint(generated_jitter=()).step
    assert "pseudo/prompts" in jax.eval_shape(step, state, frozen, {**batch, "target_sam_features": features})[1]
    with pytest.raises(ConfigError, match="target_sam_features .*: expected .2, 4, 4, channels. of Sam"):
        label_refiner.kept_features({**batch, "target_sam_features": features.update(shape=(2, 3, 4, 16))}, SAM)


def test_what_the_released_code_does_not_do_traces(weights, batches):
    """A backbone that learns, and with it all of the network; in parts; a second pass; what is left out."""
    learns, batch = Mask2Former(Maps(), decoder_layers=0, **TINY), unequal(batches[0])
    choices: dict = dict(ignored="left_out", predicts="teacher", accumulate=2, erode=True, averages="network", backbone_trains=True)
    method = joint(model=learns, second_pass=True, **choices)
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    after, metrics = jax.eval_shape(method.step, state, weights, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.dtype == jnp.float32 for value in metrics.values()) and "backbone" in after.ema_params
    assert jax.eval_shape(method.predict, state, (), batch["source_image"]).shape == (6, 32, 32, 5)


class Flat(nn.Module):
    """Every pixel is in the mask of every query with probability 1/2; the answer is class 1."""

    num_classes: int = 2
    frozen: bool = False
    align_corners: bool = False

    def setup(self):
        self.height = self.param("height", nn.initializers.zeros, ())

    def __call__(self, image, train=False):
        return self.answer(self.features(image), image.shape[1:3])

    def features(self, image, train=False):
        return [image] * 4

    def predictions(self, maps):
        masks, classes = jnp.full((len(maps[0]), 8, 8, 2), self.height), jnp.zeros((len(maps[0]), 2, 3))
        return {"class_logits": classes, "mask_logits": masks, "aux": {"class_logits": classes[None][:0], "mask_logits": masks[None][:0]}}

    def answer(self, maps, size):
        return {"logits": jnp.broadcast_to(jnp.arange(2.0), (len(maps[0]), *size, 2))}


def test_the_joint_loss_by_hand_with_ignored_pixels():
    """Class 1 on the left half of the source image, nothing on the right; the teacher's label is class 1 all over the generated one.

    Dice is 1 - 2 p t / (p + t) over all points, t being the share of them in the mask: a half, or of those that count all.
    """
    label = np.full((1, 32, 32), IGNORE, np.uint8)
    label[:, :, :16] = 1
    image = np.zeros((1, 32, 32, 3), np.uint8)
    dice = {"negative": (1 - 2 * 0.5 * 0.5 / (0.5 + 0.5), 1 / 3), "left_out": (1 / 3, 1 / 3)}  # of source, generated

    @jax.jit
    def losses(key, batch):
        """Of a first step by each rule; its gradient is in no answer and so never compiled."""
        options: dict = dict(jitter=(), generated_jitter=(), points=4000)
        methods = [clouds.make(model=Flat(), optimizer=sgd(), **options, ignored=ignored) for ignored in dice]
        found = [method.step(method.init(key, batch), (), batch)[1] for method in methods]
        return [{name: value for name, value in metrics.items() if name.startswith("loss")} for metrics in found]

    both = losses(jax.random.key(3), {"source_image": image, "source_label": label, "target_image": image})
    for shares, metrics in zip(dice.values(), both, strict=True):
        assert metrics["loss/dice"] == pytest.approx(5 * sum(shares) / 2, rel=0.03)
        assert metrics["loss/mask"] == pytest.approx(5 * np.log(2), rel=1e-5)
        assert metrics["loss/class"] == pytest.approx(2 * np.log(3), rel=1e-5)


def test_rows_of_both_kinds_lie_side_by_side():
    one, two = np.arange(6), np.arange(10, 14)
    both = side_by_side(one, two)
    assert both.tolist() == [0, 1, 2, 10, 11, 3, 4, 5, 12, 13]  # of two devices each has its own
    assert [part.tolist() for part in apart(both, (6, 4))] == [one.tolist(), two.tolist()]


def test_what_cannot_be_is_told(weights, batches):
    with pytest.raises(ConfigError, match="method.averages='all'"):
        joint(None, averages="all")
    with pytest.raises(ConfigError, match="ema_every=0"):
        joint(None, ema_every=0)
    with pytest.raises(ConfigError, match="a second pass"):
        joint(EfficientSam(), second_pass=True)
    with pytest.raises(ConfigError, match="learns masks, and model.make is a Tiny"):
        joint(None, Tiny())
    method = joint(None)
    state, short = (
        jax.eval_shape(method.init, jax.random.key(0), batches[0]),
        {**batches[0], "target_image": batches[0]["target_image"][:, :16]},
    )
    with pytest.raises(ConfigError, match="give both one size"):
        jax.eval_shape(method.step, state, (), short)
    with pytest.raises(ConfigError, match="frozen=.*segmenter.* FILE"):
        label_refiner.frozen_weights((), SAM)
    with pytest.raises(ConfigError, match="params.* is .*Sam. has .* differ.: the file is another network's"):
        label_refiner.frozen_weights(weights, dataclasses.replace(SAM, decoder_mlp_dim=24))
