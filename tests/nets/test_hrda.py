"""HRDA: its parameters, its pass put together by hand from its own parts, windows of a prediction, sizes, DeepLabV2 as the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.nets.apply import train_forward, views_forward
from segjax.nets.daformer import DAFormer, DAFormerHead
from segjax.nets.hrda import HRDA, HRDADLV2
from segjax.ops.pixel_losses import cross_entropy
from segjax.ops.resize import bilinear
from segjax.ops.supervised import supervised_terms
from segjax.ops.two_views import by_view, view
from segjax.verbs.variables import classifier_axes, shapes

SIZES: dict = dict(  # one stage: how a head fuses several is the head's
    dims=(8,), depths=(1,), num_heads=(2,), mlp_ratios=(2,), sr_ratios=(2,), patch_sizes=(7,), strides=(4,), drop_path=0.0
)
TINY = HRDA(5, channels=8, attention_channels=8, fusion="conv", window=(32, 32), dropout=0.0, normalization="none", **SIZES)
INNER = DAFormer(5, channels=8, fusion="conv", dropout=0.0, normalization="none", **SIZES)


halved = jax.jit(lambda image: bilinear(image, (32, 32)))


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def variables():
    """Drawn from numpy: compiling an init is not what is tested."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return rng.normal(0, 0.4, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes(TINY))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).uniform(size=(2, 64, 64, 3)).astype(np.float32)


def test_parameter_counts():
    full = shapes(HRDA(19))["params"]
    assert (count(full["decode_head"]["head"]), count(full["decode_head"]["scale_attention"])) == (3_712_275, 530_707)
    assert count(full) == 85_685_990
    r101 = shapes(HRDADLV2(19))["params"]
    assert {name: count(part) for name, part in r101["decode_head"].items()} == {"head": 700_454, "scale_attention": 700_454}
    assert set(classifier_axes(TINY)) == {
        f"params/decode_head/{head}/conv_seg/{leaf}" for head in ("head", "scale_attention") for leaf in ("kernel", "bias")
    }


@pytest.fixture(scope="module")
def parts(variables):
    """The DAFormer in it as a function of an image; and of one at the context's size, logits of the context and the attention."""
    heads = {kind: dict(tree["decode_head"]) for kind, tree in variables.items()}
    both = {kind: {**variables[kind], "decode_head": heads[kind]["head"]} for kind in variables}
    light = {kind: heads[kind]["scale_attention"] for kind in variables}

    @jax.jit
    def run(x):
        keep = lambda module, _: module.name == "backbone"
        outputs, found = INNER.apply(both, x, capture_intermediates=keep, mutable=["intermediates"])
        stages = found["intermediates"]["backbone"]["__call__"][0]
        return outputs["logits"], jax.nn.sigmoid(DAFormerHead(5, 8, "conv", dropout=0.0).apply(light, stages))

    return run


@jax.jit
def fuse(attention, inside, context, detail):
    """At the detail's size, of an attention that counts `inside` alone."""
    a = attention * inside
    return bilinear(a, (16, 16)) * detail + bilinear((1 - a) * context, (16, 16))


def test_a_prediction_is_windows_context_and_attention(variables, image, parts):
    got = jax.jit(TINY.apply)(variables, image)
    detail, seen = np.zeros((2, 16, 16, 5)), np.zeros((16, 16, 1))
    for y in (0, 16, 32):
        for x in (0, 16, 32):
            place = np.s_[y // 4 : y // 4 + 8, x // 4 : x // 4 + 8]
            detail[:, *place] += np.asarray(parts(image[:, y : y + 32, x : x + 32])[0])
            seen[place] += 1
    context, attention = parts(halved(image))
    want = fuse(attention, np.ones((8, 8, 1), np.float32), context, (detail / seen).astype(np.float32))
    assert got["logits"].dtype == jnp.float32 and got["features"].shape == (2, 8, 8, 8)
    np.testing.assert_allclose(got["logits"], want, atol=2e-5)


def test_training_fuses_one_window_and_learns_it_twice(variables, image, parts):
    """Without batch statistics (train=False) the parts are the same functions; the corner is traced."""
    corner = jnp.array([[8, 24]], jnp.int32)
    outputs = jax.jit(lambda v, x, c: TINY.apply(v, x, corner=c))(variables, image, corner)
    fine, (context, attention) = np.asarray(parts(image[:, 8:40, 24:56])[0]), parts(halved(image))
    inside, placed = np.zeros((8, 8, 1), np.float32), np.zeros((2, 16, 16, 5), np.float32)
    inside[1:5, 3:7], placed[:, 2:10, 6:14] = 1, fine
    fused = fuse(attention, inside, context, placed)
    np.testing.assert_allclose(outputs["detail_logits"], fine, atol=2e-5)
    np.testing.assert_allclose(outputs["logits"], fused, atol=2e-5)
    label = np.random.default_rng(2).integers(0, 6, (2, 64, 64)).astype(np.uint8)
    label[label == 5] = 255
    weight = np.random.default_rng(3).uniform(size=label.shape).astype(np.float32)

    @jax.jit
    def losses(outputs, fused, fine):
        terms = supervised_terms(outputs, label, align_corners=False, pixel_weight=weight, mean_over="all", detail_weight=0.3)
        whole = cross_entropy(bilinear(fused, (64, 64)), label) * weight
        part = cross_entropy(bilinear(fine, (32, 32)), label[:, 8:40, 24:56]) * weight[:, 8:40, 24:56]
        return terms, whole.mean(), part.mean()

    terms, whole, part = losses(outputs, fused, fine)
    assert set(terms) == {"loss/ce", "loss/ce_detail"}
    np.testing.assert_allclose(terms["loss/ce"][0] / terms["loss/ce"][1], 0.7 * whole, rtol=1e-4)
    np.testing.assert_allclose(terms["loss/ce_detail"][0] / terms["loss/ce_detail"][1], 0.3 * part, rtol=1e-4)
    assert terms["loss/ce_detail"][1] == 2 * 32 * 32


def test_a_window_of_the_whole_crop_teaches_the_context_too(variables, image):
    whole = dataclasses.replace(TINY, window=(64, 64))
    outputs = jax.eval_shape(lambda v: whole.apply(v, image, corner=jnp.zeros((1, 2), jnp.int32)), variables)
    terms = jax.eval_shape(lambda o: supervised_terms(o, np.zeros((2, 64, 64), np.uint8), align_corners=False), outputs)
    assert set(terms) == {"loss/ce", "loss/ce_detail", "loss/ce_context"}


def test_views_in_one_pass_are_passes_of_their_own(variables, image):
    """BatchNorm's statistics, running ones too, and each view's own window."""
    second = 1 - image[:, ::-1] ** 2
    key = jax.random.key(5)
    corners = jax.jit(lambda key: TINY.draw(key, (64, 64), 2)["corner"])(key)
    stacked = np.stack([image, second], 1)
    both, stats = jax.jit(lambda v, x: views_forward(TINY, v["params"], v["batch_stats"], x, key))(variables, stacked)
    expected, before = [], variables["batch_stats"]
    apply = jax.jit(lambda s, x, c: TINY.apply({**variables, "batch_stats": s}, x, train=True, corner=c, mutable=["batch_stats"]))
    both, corners = jax.device_get((both, corners))
    for n, part in enumerate((image, second)):
        outputs, changed = apply(before, part, corners[n : n + 1])
        before = changed["batch_stats"]
        expected.append(jax.device_get(outputs))
    assert not np.array_equal(corners[0], corners[1])
    for n, outputs in enumerate(expected):
        got = view(by_view(both, 2), n)
        for name in ("logits", "detail_logits", "features", "context_logits"):
            np.testing.assert_allclose(got[name], outputs[name], atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(got["detail_corner"], outputs["detail_corner"])
    ours, theirs = stats["decode_head"], before["decode_head"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours["scale_attention"], theirs["scale_attention"])
    # The head meets both contexts before both details, the code context and detail of one view after the other.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), ours["head"], theirs["head"])


def test_any_size_is_answered_and_a_crop_that_does_not_divide_is_told(variables):
    answer = lambda h, w: jax.eval_shape(lambda v, x: TINY.apply(v, x), variables, jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32))
    assert answer(70, 99)["logits"].shape == (1, 70, 99, 5) and answer(64, 96)["logits"].shape == (1, 16, 24, 5)
    assert answer(24, 32)["logits"].shape == (1, 6, 8, 5)  # smaller than a window
    odd = lambda v: train_forward(TINY, v["params"], v["batch_stats"], jnp.zeros((1, 60, 64, 3)), jax.random.key(0))
    with pytest.raises(ConfigError, match=r"multiples of 8, not \(60, 64\): change data.crop"):
        jax.eval_shape(odd, variables)
    with pytest.raises(ConfigError, match="model.window"):
        shapes(dataclasses.replace(TINY, window=(30, 32)))
    with pytest.raises(ConfigError, match="attention='both'"):
        shapes(dataclasses.replace(TINY, attention="both"))
    assert count(shapes(dataclasses.replace(TINY, attention="fixed"))["params"]) < count(shapes(TINY)["params"])


def test_deeplab_is_a_host_too():
    net = HRDADLV2(5, backbone="resnet50", width=4, window=(32, 32), attention="single")
    outputs, _ = jax.eval_shape(
        lambda key, x, c: net.init_with_output(key, x, train=True, corner=c),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    assert {name: x.shape for name, x in outputs.items()} == {
        "logits": (2, 8, 8, 5),
        "context_logits": (2, 4, 4, 5),
        "detail_logits": (2, 4, 4, 5),
        "detail_corner": (1, 2),
        "features": (2, 4, 4, 128),
    }
