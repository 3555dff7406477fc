"""MiT and the networks over it: parameter counts of the papers, odd sizes, gradients, drop path, dropout, one training method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.methods import source_only
from segjax.nets import layers
from segjax.nets.daformer import DAFormer, DAFormerHead
from segjax.nets.mit import VARIANTS, MixTransformer
from segjax.nets.segformer import SegFormer, SegFormerHead, StagesConv
from segjax.ops.conv import conv2d
from segjax.ops.resize import bilinear
from segjax.runtime.optim import make_optimizer
from segjax.runtime.state import TrainState
from segjax.verbs.variables import classifier_axes, shapes

ENCODERS = {"b0": 3_319_392, "b1": 13_151_424, "b2": 24_196_288, "b3": 44_072_128, "b4": 60_842_688, "b5": 81_443_008}
HEADS = {  # 19 classes on the channels of B5
    "conv": (DAFormerHead(19, fusion="conv"), 530_707),
    "segformer": (SegFormerHead(19), 3_164_947),
}
SIZES: dict = dict(  # two stages: half the compilation
    dims=(8, 16), depths=(2, 2), num_heads=(1, 2), mlp_ratios=(2, 2), sr_ratios=(4, 1), patch_sizes=(7, 3), strides=(4, 2)
)
TINY = {
    "sepaspp": DAFormer(5, channels=8, **SIZES),
    "aspp": DAFormer(5, channels=8, fusion="aspp", **SIZES),
    "conv3": DAFormer(5, channels=8, fusion="conv", kernel_size=3, **SIZES),
    "mmseg": SegFormer(5, channels=8, embed="conv", dropout_kind="element", **SIZES),
}


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def drawn(model, seed=0, scale=0.3):
    """Variables of the right shapes without compiling `init`: normal kernels, unit scales and variances."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = path[-1].key
        if name == "kernel":
            fan_in = max(int(np.prod(x.shape[-4:-1] if len(x.shape) > 3 else x.shape[-2:-1])), 1)
            return (rng.normal(0, scale + fan_in**-0.5, x.shape) / 2).astype(np.float32)
        return (np.ones if name in ("scale", "var") else np.zeros)(x.shape, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes(model))


def test_parameter_counts():
    assert set(ENCODERS) == set(VARIANTS)
    whole = shapes(DAFormer(19))["params"]
    assert (count(whole["backbone"]), count(whole["decode_head"])) == (ENCODERS["b5"], 3_712_275)
    smaller = {name: count(shapes(MixTransformer(variant=name))["params"]) for name in VARIANTS if name != "b5"}
    assert smaller | {"b5": ENCODERS["b5"]} == ENCODERS
    stages = [jax.ShapeDtypeStruct((1, size, size, width), jnp.float32) for size, width in ((16, 64), (8, 128), (4, 320), (2, 512))]
    for head, expected in HEADS.values():
        assert count(jax.eval_shape(head.init, jax.random.key(0), stages)["params"]) == expected


def test_trains_at_an_odd_size():
    model, image = TINY["mmseg"], np.random.default_rng(1).uniform(size=(2, 70, 101, 3)).astype(np.float32)
    variables = drawn(model)

    def loss(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        outputs, changed = model.apply(state, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
        return jnp.square(outputs["logits"] - 1).mean(), (outputs, changed["batch_stats"])

    (value, (outputs, stats)), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    assert outputs["logits"].shape == (2, 18, 26, 5) and outputs["logits"].dtype == jnp.float32 and np.isfinite(value)
    used = [np.any(leaf != 0) for leaf in jax.tree.leaves(gradients)]
    assert np.mean(used) > 0.95, "parameters without a gradient"
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), stats, variables["batch_stats"])))


@pytest.mark.parametrize("name", TINY)
def test_shapes_and_classifiers(name):
    model = TINY[name]
    image = jax.ShapeDtypeStruct((2, 70, 101, 3), jnp.float32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert outputs["logits"].shape == (2, 18, 26, 5) and outputs["features"].shape == (2, 9, 13, 16)
    if name in ("sepaspp", "mmseg"):  # the others have the head of the first
        last = {"sepaspp": "conv_seg", "mmseg": "linear_pred"}[name]
        assert set(classifier_axes(model)) == {f"params/decode_head/{last}/{leaf}" for leaf in ("bias", "kernel")}


def test_a_fusion_before_up_sampling_is_the_fusion_after_it():
    draw = np.random.default_rng(0).standard_normal
    maps = [draw((1, *size, 3), np.float32) for size in ((9, 13), (5, 7), (3, 4))]
    kernel = draw((1, 1, 9, 4), np.float32)

    @jax.jit
    def both(maps, kernel):
        after = conv2d(jnp.concatenate([bilinear(x, (9, 13)) for x in maps], -1), kernel)
        return StagesConv(4).apply({"params": {"kernel": kernel}}, maps), after

    got, expected = both(maps, kernel)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_drop_path_grows_over_all_blocks_and_needs_a_key():
    alike = dict(dims=(8, 8), num_heads=(1, 1), sr_ratios=(1, 1), strides=(4, 1))  # what runs operation by operation is compiled once
    model = MixTransformer(drop_path=0.9, **SIZES | alike)
    variables, image = drawn(model), jax.random.uniform(jax.random.key(0), (1, 32, 32, 3))
    rates = []

    class Spy(layers.DropPath):
        def __call__(self, x, rate, train):
            if not isinstance(rate, jax.core.Tracer):  # flax looks at the body once with abstract values
                rates.append(float(rate))
            return super().__call__(x, rate, train)

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr("segjax.nets.mit.DropPath", Spy)
        model.apply(variables, image, train=True)
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.9, 4), 2), atol=1e-6)

    @jax.jit
    def run(variables, image, key):
        net = lambda **how: model.apply(variables, image, **how)[-1]
        return net(), net(train=True), net(train=True, rngs={"dropout": key})

    outcomes = [[np.asarray(x) for x in run(variables, image, jax.random.key(n))] for n in range(4)]
    plain, still, _ = outcomes[0]
    np.testing.assert_array_equal(still, plain)
    assert len({outcome.tobytes() for outcome in (plain, *(dropped for _, _, dropped in outcomes))}) > 2


def test_dropout_of_channels_and_of_single_numbers():
    x = np.ones((4, 16, 16, 64), np.float32)
    for module, spatial in ((layers.ChannelDropout(0.5), False), (layers.Dropout(0.5), True)):
        y = np.asarray(jax.jit(lambda x, module=module: module.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))(x))
        assert set(np.unique(y)) == {0.0, 2.0} and abs(y.mean() - 1) < 0.15
        assert (np.ptp(y, axis=(1, 2)).max() > 0) == spatial
        for same in (module.apply({}, x, False, rngs={"dropout": jax.random.key(0)}), module.apply({}, x, True)):
            np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "b7"}, "expected one of b0, b1"),
        ({"num_heads": (1, 3)}, r"no multiples of num_heads.*set num_heads"),
        ({"depths": (1, 2, 3)}, "one a stage"),
        ({"fusion": "isa"}, "expected sepaspp, aspp or conv"),
        ({"dropout_kind": "row"}, "expected channel or element"),
    ],
)
def test_impossible_settings_are_told(changes, message):
    with pytest.raises(ConfigError, match=message):
        shapes(dataclasses.replace(TINY["sepaspp"], **changes))


def test_an_image_below_the_reduction_is_told():
    with pytest.raises(ConfigError, match="image too small for a MiT: stage 1 has 2x8 pixels, reduced 4 times"):
        jax.eval_shape(MixTransformer(**SIZES).init, jax.random.key(0), jnp.zeros((1, 8, 32, 3)))


def test_source_only_trains_a_daformer():
    optimizer = make_optimizer(name="adamw", lr=5e-2, schedule="constant", total_steps=20)
    model = DAFormer(5, channels=8, dilations=(1, 6), **{name: values[:1] for name, values in SIZES.items()})
    method = source_only.make(model=model, optimizer=optimizer)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (2, 4, 6)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    image = np.clip(label[..., None] * 50 + rng.integers(0, 20, (*label.shape, 3)), 0, 255).astype(np.uint8)
    batch = {"source_image": image, "source_label": label}
    variables = drawn(model, scale=0.0)  # `init` would be compiled
    state = jax.jit(lambda key: TrainState.create(key, variables, optimizer))(jax.random.key(0))
    step, losses = jax.jit(method.step), []
    for _ in range(8):
        state, metrics = step(state, (), batch)
        losses.append(float(metrics["loss/ce"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0], losses
    assert jax.eval_shape(method.predict, state, (), image).shape == (2, 32, 48, 5)
