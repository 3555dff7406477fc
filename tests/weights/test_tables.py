"""Public checkpoints, converted, give the originals' outputs and middle features; and the way back is bit-equal."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from golden import Golden

from segjax.errors import WeightsError
from segjax.nets.enet import ENet
from segjax.verbs import build
from segjax.verbs.variables import shapes
from segjax.weights import layouts, safetensors_io, torch7, walk
from segjax.weights.enet import ENET_PYTORCH, ENET_TORCH7
from segjax.weights.resnet import DEEPLABV2_RESNET, RESNET_TORCHVISION
from segjax.weights.vgg import DEEPLABV2_VGG16

FILES = {
    "enet/ENet": ENET_PYTORCH,
    "resnet_torchvision/resnet50-tiny.pth": RESNET_TORCHVISION,
    "deeplabv2_resnet_scale/DeepLab_resnet_pretrained_init-tiny.pth": DEEPLABV2_RESNET,
    "deeplabv2_resnet_multi/GTA2Cityscapes_multi-tiny.pth": DEEPLABV2_RESNET,
    "deeplabv2_vgg16/vgg16_deeplab-tiny.pth": DEEPLABV2_VGG16,
}
SCALE, MULTI = list(FILES)[2:4]


def _apply(net, variables, image, **kwargs):
    return jax.jit(lambda v, x: net.apply(v, x, train=False, **kwargs))(variables, image)


def test_enet_pytorch(goldens):
    golden = Golden(goldens / "enet/ENet")
    net = golden.net()
    variables = safetensors_io.unflatten(golden.convert(net))
    entering = {"downsample2_0": "regular1_4", "upsample4_0": "dilated3_7"}  # a block's input is the last output of the scan before it
    leaving = {"downsample2_0": "downsample2_0", "upsample4_0": "upsample4_0"}

    def run(variables, image):
        middle = {}

        def look(call, args, kwargs, context):
            result = call(*args, **kwargs)
            name = context.module.name
            if context.method_name == "__call__" and name in leaving:
                middle[f"mid_{entering[name]}"] = args[0]
                middle[f"mid_{leaving[name]}"] = result[0] if isinstance(result, tuple) else result
            return result

        with nn.intercept_methods(look):
            return {"out_logits": net.apply(variables, image, train=False)["logits"], **middle}

    for name, value in jax.jit(run)(variables, golden.arrays["in_image"]).items():
        golden.check(name, value)
    golden.check("out_logits_odd", _apply(net, variables, golden.arrays["in_image_odd"])["logits"])


def test_resnet_torchvision(goldens):
    golden = Golden(goldens / "resnet_torchvision/resnet50-tiny.pth")
    image = golden.arrays["in_image"]
    plain = golden.net(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1))
    variables, dilating = golden.variables(plain), golden.net()
    run = jax.jit(lambda v, x: [net.apply(v, x) for net in (plain, dilating)])
    layers, dilated = run(variables, image)
    for n, layer in enumerate(layers):
        golden.check(f"mid_layer{n + 1}", layer)
    pooled = np.asarray(layers[-1]).mean((1, 2))
    golden.check("out_logits", pooled @ golden.source["fc.weight"].T + golden.source["fc.bias"])
    golden.check("out_layer3_os8", dilated[2])
    golden.check("out_layer4_os8", dilated[3])


def test_resnet_v1c(goldens):
    """No golden has this stem: torch's own functions run it, and behind it stands torchvision's network."""
    torch = pytest.importorskip("torch")
    golden, draw = Golden(goldens / "resnet_torchvision/resnet50-tiny.pth"), np.random.default_rng(0).standard_normal
    source = {key: value for key, value in golden.source.items() if not key.startswith(("conv1", "bn1", "fc"))}
    for n, (channels, features) in enumerate(((3, 4), (4, 4), (4, 8))):
        source[f"stem.{3 * n}.weight"] = draw((features, channels, 3, 3)).astype(np.float32) / 3
        for name in ("weight", "bias", "running_mean", "running_var"):
            source[f"stem.{3 * n + 1}.{name}"] = np.abs(draw(features)).astype(np.float32) + 0.5
    public = layouts.recognise(source, "file")
    spec = public.model(source, {})
    net = build.resolve(spec, "test")
    flat = walk.to_segjax(source, public.layout(source), safetensors_io.flatten(shapes(net)))
    assert public.name == "resnet_v1c" and spec["width"] == 8 and spec["depth"] == (3, 4, 6, 3)
    back = walk.to_source(flat, public.layout(flat))
    assert all(back[key].tobytes() == np.asarray(source[key], order="C").tobytes() for key in back)
    assert all(key in back or key.endswith("num_batches_tracked") for key in source)

    x = torch.from_numpy(np.moveaxis(golden.arrays["in_image"], -1, 1).copy())
    take = lambda key: torch.from_numpy(np.array(source[key]))
    for n, stride in enumerate((2, 1, 1)):
        x = torch.nn.functional.conv2d(x, take(f"stem.{3 * n}.weight"), stride=stride, padding=1)
        norm = [take(f"stem.{3 * n + 1}.{name}") for name in ("running_mean", "running_var", "weight", "bias")]
        x = torch.relu(torch.nn.functional.batch_norm(x, *norm))
    run = lambda v, x: net.apply(v, x, capture_intermediates=lambda m, _: m.name == "stem_7", mutable=["intermediates"])
    layers, seen = jax.jit(run)(safetensors_io.unflatten(flat), golden.arrays["in_image"])
    stem = nn.relu(seen["intermediates"]["stem_7"]["__call__"][0])
    np.testing.assert_allclose(stem, x.permute(0, 2, 3, 1), atol=2e-5 * float(x.max()))
    assert [layer.shape[1:3] for layer in layers] == [(17, 25), (9, 13), (9, 13), (9, 13)]


def _branches(golden, captured):
    """The outputs of the sum over two and over four rates, in one program, and what the module `captured` gave."""
    two, four = (golden.net(branches=branches, normalization="none") for branches in (2, 4))
    keep = dict(capture_intermediates=lambda module, _: module.name == captured, mutable=["intermediates"])
    run = jax.jit(lambda v, x: (two.apply(v, x), *four.apply(v, x, **keep)))
    *outputs, seen = run(golden.variables(golden.net()), golden.arrays["in_image"])
    return dict(zip((2, 4), outputs, strict=True)), seen["intermediates"][captured]["__call__"][0]


@pytest.mark.parametrize("file", [SCALE, MULTI])
def test_deeplabv2_resnet(goldens, file):
    golden = Golden(goldens / file)
    outputs, layers = _branches(golden, "backbone")
    for branches, found in outputs.items():
        name = f"out_main_{branches}of4" if file == MULTI else {2: "out_logits_2of4", 4: "out_logits_all4"}[branches]
        golden.check(name, found["logits"])
        assert ("aux_logits" in found) == (file == MULTI)
        if file == MULTI:
            golden.check(f"out_aux_{branches}of4", found["aux_logits"])
    for n, layer in enumerate(layers):
        golden.check(f"mid_layer{n + 1}", layer)


def test_deeplabv2_vgg16(goldens):
    golden = Golden(goldens / "deeplabv2_vgg16/vgg16_deeplab-tiny.pth")
    outputs, stages = _branches(golden, "features")
    for branches, name in ((2, "out_logits_2of4"), (4, "out_logits_all4")):
        golden.check(name, outputs[branches]["logits"])
    first = np.asarray(stages[0])
    golden.check("mid_features_4", first.reshape(1, 32, 2, 48, 2, -1).max((2, 4)))
    for index, stage in ((22, 3), (28, 4), (32, 5)):
        golden.check(f"mid_features_{index}", stages[stage])


@pytest.mark.parametrize("file", FILES)
def test_there_and_back_is_bit_equal(goldens, file):
    Golden(goldens / file).check_the_way_back(ignored=(r".*\.num_batches_tracked", r"fc\..*"))


@pytest.mark.parametrize("file", FILES)
def test_each_file_is_recognised_by_one_layout_alone(goldens, file):
    assert Golden(goldens / file).public is FILES[file]


def test_the_wrong_network_gives_both_lists(goldens):
    golden, multi = Golden(goldens / SCALE), Golden(goldens / MULTI)
    with pytest.raises(
        WeightsError, match=r"parameters without a source 2: params/aux_classifier/bias \(no rule\), params/aux_classifier/kernel"
    ):
        golden.convert(golden.net(multi_level=True))
    with pytest.raises(WeightsError, match=r"unused source keys 8: layer5\.conv2d_list\.0\.bias"):
        multi.convert(multi.net(multi_level=False))
    with pytest.raises(WeightsError, match="wrong shapes 2: layer5.conv2d_list.0.*does not fit params/classifier"):
        walk.to_segjax(golden.source, golden.public.layout(golden.source), golden.shapes(golden.net(num_classes=19)))
    with pytest.raises(WeightsError, match=r"layer3\.6\.conv1.*does not fit|unused source keys 255: layer3\.10"):
        walk.to_segjax(golden.source, golden.public.layout(golden.source), golden.shapes(golden.net(backbone="resnet50")))
    enet = Golden(goldens / "enet/ENet")
    with pytest.raises(WeightsError, match=r"parameters without a source \d+: batch_stats.*unused source keys \d+: bn1\.bias"):
        walk.to_segjax(golden.source, ENET_PYTORCH.layout(()), enet.shapes(enet.net()))
    for public in (ENET_PYTORCH, ENET_TORCH7, DEEPLABV2_VGG16):
        with pytest.raises(WeightsError, match=public.name):
            public.model(golden.source, {})
    for public in (RESNET_TORCHVISION, DEEPLABV2_RESNET):
        with pytest.raises(WeightsError, match=public.name):
            public.model(enet.source, {})


def test_real_torch7_enet_equals_an_independent_implementation(real_data):
    pytest.importorskip("torchfile")
    reference = np.load(real_data / "reference" / "enet_cityscapes_0016E5_07959.npz")
    source, epsilon = torch7.read(real_data / "weights" / "enet_cityscapes_torch7" / "enet-model.net")
    spec = ENET_TORCH7.model(source, {})
    assert epsilon == 1e-3 and spec["num_classes"] == 20
    net = ENet(spec["num_classes"], spec["layout"])
    flat = walk.to_segjax(source, ENET_TORCH7.layout(source), safetensors_io.flatten(shapes(net)))
    image = reference["enet_input_512x256"].transpose(1, 2, 0)[None]
    logits = np.asarray(_apply(net, safetensors_io.unflatten(flat), image)["logits"])[0]
    np.testing.assert_allclose(logits, reference["enet_logits_512x256"].transpose(1, 2, 0), rtol=0, atol=3e-3)
    assert (logits.argmax(-1) == reference["enet_pred_512x256"]).mean() >= 0.999
