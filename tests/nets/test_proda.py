"""ProDA's network: counts, sizes, the original's arithmetic in torch's own functions, both public layouts, a backbone's weights."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_state import TorchState, drawn_source, nchw, nhwc, variables_of

from segjax.errors import ConfigError, WeightsError
from segjax.nets.deeplab import CAFFE_MEAN_BGR, DeepLabV2, normalise
from segjax.nets.proda import ProDA, ProDAHead
from segjax.verbs import variables
from segjax.verbs.convert import _import
from segjax.weights import layouts, safetensors_io, wrappers
from segjax.weights.diga import DIGA_LAYOUT, PRODA_LAYOUT
from segjax.weights.resnet import SINGLE

TINY = ProDA(5, "resnet50", width=4, channels=32)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_counts_of_the_paper():
    params = variables.shapes(ProDA(19))["params"]
    assert count(params) == 65_063_568 and count(params["head"]) == 22_563_408
    assert "bias" not in params["head"]["classifier"] and params["head"]["squeeze_excite"]["squeeze"]["kernel"].shape == (1280, 80)
    assert count(variables.shapes(ProDA(16))["params"]) == 65_063_568 - 3 * 256


def test_sizes_and_classifier():
    image = jax.ShapeDtypeStruct((2, 512, 896, 3), jnp.float32)
    outputs = jax.eval_shape(lambda v, x: ProDA(19).apply(v, x), variables.shapes(ProDA(19)), image)
    assert outputs["logits"].shape == (2, 65, 113, 19) and outputs["features"].shape == (2, 65, 113, 256)
    assert set(variables.classifier_axes(TINY)) == {"params/head/classifier/kernel"}


def keys(stem, head, extra=False, depths=(3, 4, 6, 3)):
    """What the public code calls its tensors, from its constructor."""
    norm = ("weight", "bias", "running_mean", "running_var")
    found = {f"{stem[0]}.weight"} | {f"{stem[1]}.{name}" for name in norm}
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            found |= {f"{at}.conv{n}.weight" for n in (1, 2, 3)} | {f"{at}.bn{n}.{name}" for n in (1, 2, 3) for name in norm}
        found |= {f"layer{stage}.0.downsample.0.weight"} | {f"layer{stage}.0.downsample.1.{name}" for name in norm}
    affine = [*(f"conv2d_list.{n}.{m}" for n in range(5) for m in (0, 1)), *(f"bottleneck.{at}" for at in ("0.se.0", "0.se.2", "1", "2"))]
    found |= {f"{head}.{at}.{name}" for at in affine for name in ("weight", "bias")} | {f"{head}.head.1.weight"}
    return found | ({f"bn_pretrain.{name}" for name in norm} if extra else set())


def original(torch, source, image, stem, head):
    """The forward pass of the public code in evaluation mode, over a normalised image."""
    net, relu = TorchState(torch, source), torch.relu
    x = relu(net.norm(net.conv(nchw(torch, image), stem[0], 2), stem[1]))
    x = net.f.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for stage, (depth, stride, dilation) in enumerate(zip((3, 4, 6, 3), (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        for block in range(depth):
            x = net.bottleneck(x, f"layer{stage}.{block}", stride if block == 0 else 1, dilation)
    if "bn_pretrain.weight" in source:
        x = net.norm(x, "bn_pretrain")
    group = lambda x, at: net.f.group_norm(x, 32, net.arrays[f"{at}.weight"], net.arrays[f"{at}.bias"], 1e-5)
    branches = []
    for n, dilation in enumerate((1, 6, 12, 18, 24)):
        at = f"{head}.conv2d_list.{n}"
        branches.append(relu(group(net.conv(x, f"{at}.0", dilation=dilation), f"{at}.1")))
    x, linear = torch.cat(branches, 1), lambda x, at: net.f.linear(x, net.arrays[f"{at}.weight"], net.arrays[f"{at}.bias"])
    squeeze = linear(relu(linear(x.mean((2, 3)), f"{head}.bottleneck.0.se.0")), f"{head}.bottleneck.0.se.2")
    x = x * torch.sigmoid(squeeze)[:, :, None, None]
    feature = group(net.conv(x, f"{head}.bottleneck.1"), f"{head}.bottleneck.2")
    return nhwc(net.conv(feature, f"{head}.head.1")), nhwc(feature)


FORMS = {
    "diga": (DIGA_LAYOUT, ("layer0.0", "layer0.1"), "final", "caffe_128", False),
    "proda": (PRODA_LAYOUT, ("conv1", "bn1"), "layer5", "none", True),
}


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_original_under_its_own_names(name):
    torch = pytest.importorskip("torch")
    layout, stem, head, normalization, extra = FORMS[name]
    net = TINY.clone(normalization=normalization, extra_norm=extra)
    source = drawn_source(net, layout)
    assert set(source) == keys(stem, head, extra)
    wrapped = {f"module.{key}": value for key, value in source.items()} | {"module.layer1.0.bn1.num_batches_tracked": np.array(7)}
    arrays, removed = wrappers.unwrap(wrapped)
    public = layouts.recognise(arrays, "file")
    spec = public.model(arrays, {})
    assert public.name == name and removed == ("module.",)
    assert ProDA(**{key: value for key, value in spec.items() if key != "make"}) == net
    image = np.random.default_rng(1).random((2, 67, 90, 3), np.float32)
    outputs = jax.jit(lambda v, x: net.apply(v, x))(variables_of(source, layout, net), image)
    mean = np.array(CAFFE_MEAN_BGR, np.float32)
    seen = (image[..., ::-1] * 255 - mean) / 128 if name == "diga" else image
    logits, feature = original(torch, source, seen, stem, head)
    assert logits.shape == (2, 9, 12, 5)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(outputs["features"], feature, atol=1e-4 * np.abs(feature).max())


def test_the_head_trains_with_dropped_channels_in_bfloat16_too():
    head = ProDAHead(5, 32, dropout=0.5)
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 128)).astype(np.float32)
    params = variables_of(drawn_source(TINY, DIGA_LAYOUT), DIGA_LAYOUT, TINY)["params"]["head"]

    def loss(params):
        logits, feature = head.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(2)})
        return jnp.square(logits).mean(), feature

    gradients, feature = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    silent = np.all(np.asarray(feature) == 0, axis=(1, 2))
    assert 0.2 < silent.mean() < 0.8 and silent.shape == (2, 32)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    image, half = jax.ShapeDtypeStruct((1, 35, 50, 3), jnp.float32), TINY.clone(dtype=jnp.bfloat16)
    outputs = jax.eval_shape(lambda v, x: half.apply(v, x), variables.shapes(TINY), image)
    assert outputs["logits"].dtype == jnp.float32 and outputs["features"].dtype == jnp.bfloat16


def test_images_as_diga_gives_them():
    image = np.random.default_rng(0).random((1, 2, 2, 3), np.float32)
    expected = (image[..., ::-1] * 255 - np.array(CAFFE_MEAN_BGR)) / 128
    np.testing.assert_allclose(normalise(image, "caffe_128"), expected, atol=1e-5)
    np.testing.assert_allclose(normalise(image, "caffe_128_rgb"), expected[..., ::-1], atol=1e-5)


def test_the_backbone_of_a_deeplab_file_is_this_ones(tmp_path):
    """AdaptSegNet's file holds another head, which is left out; `classifier: fresh` draws this one's (tests/verbs/test_variables.py)."""
    source = drawn_source(DeepLabV2(3, "resnet50", width=4), SINGLE)
    path = tmp_path / "init.safetensors"
    safetensors_io.write(path, {f"Scale.{key}": value for key, value in source.items()}, {})
    flags = dict(input=str(path), layout="resnet_caffe", branch="model", set=[], branches=None, prefix="backbone", label_space="")
    arrays, _, _ = _import(types.SimpleNamespace(**flags))
    here = safetensors_io.flatten(variables.shapes(TINY))
    assert {name: array.shape for name, array in arrays.items()} == {name: x.shape for name, x in here.items() if "/backbone/" in name}
    np.testing.assert_array_equal(
        arrays["params/backbone/layer3_rest/conv2/kernel"][4].transpose(3, 2, 0, 1), source["layer3.5.conv2.weight"]
    )


def test_what_it_cannot_be_is_told():
    for net, words in (
        (TINY.clone(channels=48), "model.channels=48: expected a multiple of 32"),
        (TINY.clone(backbone="vgg16"), "model.backbone='vgg16': expected resnet50 or resnet101"),
        (TINY.clone(normalization="bgr"), "model.normalization='bgr'"),
    ):
        with pytest.raises(ConfigError, match=words):
            variables.shapes(net)
    source = drawn_source(TINY, DIGA_LAYOUT)
    del source["final.head.1.weight"]
    with pytest.raises(WeightsError, match="layout diga: .*'final.head.1.weight'"):
        layouts.recognise(source, "file").model(source, {})
