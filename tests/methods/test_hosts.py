"""DACS, DAFormer, HRDA and MIC: the originals' own step, any mesh, restart, one trace, no transfer, both precisions, every switch."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from test_contract import Tiny, batch, copied, optimizer, run  # noqa: F401  (batch is a fixture)

from segjax.errors import ConfigError
from segjax.methods import dacs, daformer
from segjax.nets.hrda import HRDA
from segjax.nets.imagenet_copy import imagenet_features
from segjax.nets.layers import Conv
from segjax.ops import mixing
from segjax.ops.mixtures import Labelled, masked
from segjax.ops.supervised import supervised_terms
from segjax.runtime import mesh as meshes
from segjax.runtime.optim import make_optimizer
from segjax.typing import IGNORE


class Patches(nn.Module):
    """An encoder of one stage at stride 4. HRDA over a MiT is tests/nets' to test, and three times the program here."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, train):
        return [nn.relu(Conv(8, (4, 4), 4, padding=0, dtype=self.dtype, name="proj")(x))]


class OverPatches(HRDA):
    def encoder(self, name="backbone"):
        return Patches(self.dtype, name=name)


TWO = OverPatches(5, channels=8, attention_channels=8, fusion="conv", dropout=0.0, window=(16, 16))
COMMON: dict = dict(threshold=0.3, ema_decay=0.9)
# What changes a picture is compiled under one host each.
STYLE, BLUR = dict(betas=(0.1,), stylized_share=0.5, blur_probability=0.0), dict(jitter=0.0)
STILL = dict(jitter=0.0, blur_probability=0.0)


def two_resolutions(model=TWO):
    things, hidden = dict(feature_classes=(1, 3), feature_min_ratio=0.1), dict(mask_weight=0.5, mask_block=8, mask_images="half")
    return daformer.make(model=model, optimizer=optimizer(), margins=True, **things, **hidden, **STILL, **COMMON)


METHODS = {
    "dacs": lambda: dacs.make(model=Tiny(), optimizer=optimizer(), source_jitter=True, statistics="target", **STYLE, **COMMON),
    "daformer": lambda **to: daformer.make(
        model=Tiny(**to), optimizer=optimizer(), feature_classes=(1, 3), mask_weight=1.0, mask_block=8, ignore_top=2, **BLUR, **COMMON
    ),
    "hrda": two_resolutions,
}


def drawn(model, size=(16, 32)):
    """A network's variables from numpy."""
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False))
    rng = np.random.default_rng(7)
    ones = lambda path, x: (
        np.ones(x.shape, np.float32) if path[-1].key in ("scale", "var") else rng.normal(0, 0.2, x.shape).astype(np.float32)
    )
    return jax.tree_util.tree_map_with_path(ones, dict(abstract))


@pytest.fixture(scope="module")
def crops(batch):  # noqa: F811
    """The contract's batch with sides that are multiples of 16, and the border of the target images not to be trusted."""
    found = {name: array[:, :16, :32] for name, array in batch.items()}
    return found | {"target_label": np.where(np.arange(16)[:, None] < 3, IGNORE, found["target_label"] * 0).astype(np.uint8)}


def frozen_of(name):
    model = TWO if name == "hrda" else Tiny()
    return () if name == "dacs" else {"imagenet": drawn(model)}


@pytest.mark.parametrize("name", METHODS)
def test_meshes_restart_one_trace_no_transfer(name, crops):
    frozen, traces = frozen_of(name), []
    method = METHODS[name]()

    def counted(*arguments):
        traces.append(name)
        return method.step(*arguments)

    state = first = jax.jit(method.init)(jax.random.key(3), crops)
    step, on_device, history = jax.jit(counted), jax.device_put((frozen, crops)), []
    with jax.transfer_guard("disallow"):
        for _ in range(4):
            if len(history) == 2:
                half = copied(state)
            state, metrics = step(state, *on_device)
            history.append(jax.device_get(metrics))
        for _ in range(2):
            half, _ = step(half, *on_device)
        nothing = jax.device_put({**crops, "source_label": crops["source_label"] * 0})
        _, without = step(state, on_device[0], nothing)
    assert len(traces) == 1
    without = jax.device_get(without)  # their mean over no thing is NaN; here the term is 0
    assert without.get("loss/feature_distance", 0) == 0 and all(np.isfinite(value) for value in without.values())
    assert all(np.isfinite(value) for row in history for value in row.values())
    for a, b in zip(jax.tree.leaves(state.replace(key=0)), jax.tree.leaves(half.replace(key=0)), strict=True):
        np.testing.assert_array_equal(a, b)
    if name == "daformer":  # in bfloat16 nearly the same terms; a step that gives them alone compiles no gradient
        low = METHODS[name](dtype=jnp.bfloat16).step
        keys = ("loss/ce", "loss/feature_distance")
        terms = jax.jit(lambda *arguments: {key: low(*arguments)[1][key] for key in keys})(first, *on_device)
        for key in keys:
            assert 0 < abs(terms[key] - history[0][key]) < 3e-2 * history[0][key], key
    if name == "hrda":  # nearly the same answers
        models = TWO, dataclasses.replace(TWO, dtype=jnp.bfloat16)
        predict = jax.jit(lambda state, image: [two_resolutions(model).predict(state, (), image) for model in models])
        whole, low = predict(first, crops["source_image"])
        assert 0 < np.abs(whole - low).max() < 3e-2 * np.abs(whole).max()
    many, other = run(METHODS[name](), crops, 2, meshes.make_mesh(2, 4), state=first, frozen=frozen)
    for mine, theirs in zip(history[:2], other, strict=True):
        for key in mine:
            assert float(mine[key]) == pytest.approx(theirs[key], abs=1e-5, rel=1e-4 if key == "gradient_norm" else 0), key
        assert {"loss/ce", "loss/mix", "pseudo/quality"} <= set(mine) and (name == "dacs" or mine["loss/feature_distance"] > 0)
    assert int(many.step) == 2


@pytest.mark.parametrize("name", METHODS)
def test_both_precisions_and_every_switch_trace(name, crops):
    half: dict = dict(dtype=jnp.bfloat16)
    model = dataclasses.replace(TWO, **half) if name == "hrda" else Tiny()
    make = dacs.make if name == "dacs" else daformer.make
    choices: dict = dict(teacher="running", normalise="together", statistics="target", predicts="teacher", mean_over="valid", pool="image")
    choices |= dict(ignored="never", betas=(0.05, 0.1), accumulate=2 if name == "dacs" else 1)
    method = make(model=model, optimizer=optimizer(), **choices, **({} if name == "dacs" else dict(mask_weight=1.0, mask_block=8)))
    state = jax.eval_shape(method.init, jax.random.key(0), crops)
    after, metrics = jax.eval_shape(method.step, state, frozen_of(name), crops)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert all(value.dtype == jnp.float32 for value in (*metrics.values(), *jax.tree.leaves(after.params)))
    assert jax.eval_shape(method.predict, state, (), crops["source_image"]).shape == (8, 16, 32, 5)


class Given(nn.Module):
    """Gives stored outputs, which are its parameters: both views of the student where the batch is twice as long, else the teacher's."""

    vectors: str
    num_classes: int = 19
    align_corners: bool = False

    @nn.compact
    def __call__(self, image, train=False):
        z = np.load(self.vectors)
        given = lambda name, key: self.param(name, lambda _: jnp.asarray(nhwc(z[key])))
        source, mix = given("source", "in_src_logits"), given("mix", "in_mix_logits")
        features, teacher = given("features", "in_feat_s"), given("teacher", "in_teacher_logits")
        if not train or image.shape[0] == len(z["in_label"]):
            return {"logits": teacher, "features": features}
        pair = lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])
        return {"logits": pair(source, mix), "features": pair(features, jnp.zeros_like(features))}


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_daformers_own_step(goldens, monkeypatch, seed):
    """Pseudo-labels, quality weight, margins, mixture, three losses and their gradients, as its code ran them from end to end."""
    path = goldens / f"06a_dacs_step_s{seed}.npz"
    z = np.load(path)
    picked = np.zeros((2, 20), bool)
    for row, values in zip(picked, z["rnd_classes"], strict=True):
        row[[min(value, 19) for value in values if value >= 0]] = True
    monkeypatch.setattr(mixing, "choose_half", lambda *_: jnp.asarray(picked))
    model, (top, bottom), (weight, ratio) = Given(str(path)), z["par_ignore_rows"].tolist(), z["par_fd"].tolist()
    sgd = make_optimizer(name="sgd", lr=1.0, momentum=0.0, schedule="constant")
    options = dict(threshold=float(z["par_thr"]), ignore_top=top, ignore_bottom=bottom, feature_weight=weight, feature_min_ratio=ratio)
    method = daformer.make(model=model, optimizer=sgd, jitter=0.0, blur_probability=0.0, **options)
    image = np.zeros((*z["in_label"].shape, 3), np.uint8)  # the network's answers are stored, so none is looked at
    data = {"source_image": image, "target_image": image, "source_label": z["in_label"].astype(np.uint8)}
    state = method.init(jax.random.key(0), data)
    imagenet = {"params": {**state.params, "features": jnp.asarray(nhwc(z["in_feat_imnet"]))}}
    after, metrics = jax.jit(method.step)(state, {"imagenet": imagenet}, data)
    for name, key, atol in (("ce", "src", 5e-5), ("mix", "mix", 2e-5), ("feature_distance", "fd", 2e-7)):
        np.testing.assert_allclose(metrics[f"loss/{name}"], z[f"out_loss_{key}"], atol=atol)
    np.testing.assert_allclose(metrics["pseudo/quality"], z["out_q"], atol=2e-6)
    gradient = jax.tree.map(lambda before, after: before - after, state.params, after.params)
    for name, key in (("source", "src_logits"), ("mix", "mix_logits"), ("features", "feat_s")):
        np.testing.assert_allclose(gradient[name], nhwc(z[f"grad_{key}"]), atol=2e-6)  # a difference of parameters of size 1
    np.testing.assert_array_equal(after.ema_params["mix"], state.params["mix"])  # step 0 copies, then the student moves


@pytest.mark.parametrize("seed", [0, 1])
def test_hrdas_own_losses(goldens, seed):
    z = np.load(goldens / f"07_hrda_s{seed}.npz")
    top, _, left, _ = z["rnd_box"]
    outputs = {"logits": nhwc(z["out_fused"]), "detail_logits": nhwc(z["in_hr"]), "detail_corner": jnp.array([[top, left]])}
    weights = dict(pixel_weight=z["in_weight"], mean_over="all", detail_weight=float(z["par"][1]))
    terms = jax.jit(lambda o: supervised_terms(o, z["in_label"], align_corners=False, **weights))(outputs)
    np.testing.assert_allclose(jnp.divide(*terms["loss/ce"]), z["out_loss_fused"], atol=1e-5)
    np.testing.assert_allclose(jnp.divide(*terms["loss/ce_detail"]), z["out_loss_hr"], atol=2e-6)


def test_mics_own_pictures(goldens, monkeypatch):
    z = np.load(goldens / "08_mic_mask_s0.npz")
    mean, image, shown = np.array([0.485, 0.456, 0.406]), nhwc(z["in_x1"]), z["out_mask1"][:, 0] > 0
    monkeypatch.setattr(mixing, "block_mask", lambda *_, **__: jnp.asarray(shown))
    target = Labelled(jnp.asarray(image + mean, jnp.float32), *jnp.zeros((2, *image.shape[:3])))
    got = masked(jax.random.key(0), target, target, block=32, ratio=0.7)
    np.testing.assert_allclose(got.image - mean, nhwc(z["out_x1"]), atol=2e-5)
    pair = Labelled(*(jnp.concatenate([part, part]) for part in target))
    source = pair._replace(image=pair.image * 0, label=pair.label + 3)
    half = masked(jax.random.key(0), source, pair, block=32, ratio=0.7, images="half")  # source and target in turn
    assert not np.asarray(half.image[0])[shown[0]].any() and half.label[:, 0, 0].tolist() == [3, 0]
    np.testing.assert_array_equal(half.image[1], got.image[0])


class Parts(nn.Module):
    """An encoder under a head."""

    @nn.compact
    def __call__(self, image, train=False, head=True):
        features = Conv(4, (1, 1), name="backbone")(image)
        assert not head, "the head's answer is not needed"
        return {"features": features}


def test_an_encoder_alone_stands_for_imagenets_network(crops):
    image, drawn = crops["source_image"] / np.float32(255), np.random.default_rng(0).normal
    encoder = {"params": {"kernel": drawn(size=(1, 1, 3, 4)), "bias": drawn(size=4)}}
    own = {"params": {"backbone": jax.tree.map(np.zeros_like, encoder["params"]), "decode_head": {"bias": np.ones(2)}}, "batch_stats": {}}
    whole = {"params": {"backbone": encoder["params"], "decode_head": {"bias": np.ones(7)}}}
    want = image @ encoder["params"]["kernel"][0, 0] + encoder["params"]["bias"]
    for frozen in (encoder, whole):
        np.testing.assert_allclose(imagenet_features(Parts(), own, {"imagenet": frozen}, image), want, atol=1e-5)
    wider = jax.tree.map(lambda x: np.concatenate([x, x]), encoder)
    with pytest.raises(ConfigError, match=r'frozen\["imagenet"\]: params.*another encoder'):
        imagenet_features(Parts(), own, {"imagenet": wider}, image)


def test_what_cannot_be_is_told(crops):
    trace = lambda method, data, frozen=(): jax.eval_shape(method.step, jax.eval_shape(method.init, jax.random.key(0), data), frozen, data)
    with pytest.raises(ConfigError, match="method.teacher='eval': expected 'batch' or 'running'"):
        dacs.make(model=Tiny(), optimizer=optimizer(), teacher="eval")
    with pytest.raises(ConfigError, match="method.margins.*segjax.data.margins:Margins"):
        trace(METHODS["hrda"](), {key: value for key, value in crops.items() if key != "target_label"}, frozen_of("hrda"))
    with pytest.raises(ConfigError, match="frozen={"):
        trace(METHODS["daformer"](), crops)
    with pytest.raises(ConfigError, match="mask_images='all'"):
        trace(daformer.make(model=Tiny(), optimizer=optimizer(), mask_weight=1.0, mask_images="all", feature_weight=0.0), crops)
    with pytest.raises(ConfigError, match="8 source images .* and 4 target images"):
        trace(METHODS["dacs"](), {**crops, "target_image": crops["target_image"][:4]})
    with pytest.raises(ConfigError, match="margins top=15 bottom=120"):
        trace(daformer.make(model=Tiny(), optimizer=optimizer(), ignore_top=15, ignore_bottom=120), crops)
