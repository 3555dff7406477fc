"""HRNet and OCR: counts, sizes, the original's arithmetic in torch's own functions, the public layouts, one step of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_state import TorchState, drawn_source, nchw, nhwc, variables_of

from segjax.errors import WeightsError
from segjax.nets.hrnet import HighResolutionModule, HRNet
from segjax.nets.ocr import HRNetOCR, OCRHead
from segjax.verbs.variables import classifier_axes, shapes
from segjax.weights import layouts, safetensors_io, walk, wrappers
from segjax.weights.hrnet import DIGA_LAYOUT, IMAGENET_LAYOUT, OCR_LAYOUT

SIZES = dict(width=4, modules=(1, 2, 1), blocks=2, stem=8, bottlenecks=2, bottleneck_width=4)
TINY = HRNetOCR(5, **SIZES, channels=12, key_channels=6)
FORMS = {"hrnet_ocr": (OCR_LAYOUT, "imagenet"), "diga_hrnet": (DIGA_LAYOUT, "caffe_128_rgb")}
NORM = ("weight", "bias", "running_mean", "running_var")


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def test_counts_and_sizes_of_w48():
    found = shapes(HRNetOCR(19))["params"]
    assert (count(found["backbone"]), count(found["head"])) == (65_325_120, 5_047_558)  # 70,372,678 as torch counts the authors' code
    assert found["backbone"]["stage3"]["branch2"]["unit1"]["conv"]["kernel"].shape == (4, 4, 3, 3, 192, 192)
    image = jax.ShapeDtypeStruct((1, 513, 1023, 3), jnp.float32)
    net = HRNetOCR(19, dtype=jnp.bfloat16)
    outputs = jax.eval_shape(lambda v, x: net.apply(v, x), shapes(HRNetOCR(19)), image)
    assert {name: (x.shape, x.dtype.name) for name, x in outputs.items()} == {
        "logits": ((1, 129, 256, 19), "float32"),
        "aux_logits": ((1, 129, 256, 19), "float32"),
        "features": ((1, 129, 256, 512), "bfloat16"),
    }
    assert set(classifier_axes(TINY)) == {f"params/head/{name}classifier/{leaf}" for name in ("", "aux_") for leaf in ("kernel", "bias")}


def backbone_keys(modules, blocks, bottlenecks, project, diga=False):
    """What the public code calls its tensors, from its constructors."""
    units = [(f"conv{n}", f"bn{n}") for n in (1, 2)]
    first = "stage1" if diga else "layer1"
    units += [(f"{first}.{b}.conv{n}", f"{first}.{b}.bn{n}") for b in range(bottlenecks) for n in (1, 2, 3)]
    units += [(f"{first}.0.downsample.0", f"{first}.0.downsample.1")] * project
    for n, (stage, names) in enumerate(zip((2, 3, 4), ("1_2", "2_3", "3_4"), strict=True), 1):
        transition = f"transition_stage_{names}" if diga else f"transition{n}"
        places = [f"{transition}.{n}.0"] + [f"{transition}.0"] * (n == 1)
        units += [(f"{place}.0", f"{place}.1") for place in places]
        for m in range(modules[n - 1]):
            at = f"stage{stage}.{m}"
            for i in range(stage):
                units += [(f"{at}.branches.{i}.{b}.conv{k}", f"{at}.branches.{i}.{b}.bn{k}") for b in range(blocks) for k in (1, 2)]
                fuse = f"{at}.fuse_layers.{i}"
                units += [(f"{fuse}.{j}.0", f"{fuse}.{j}.1") for j in range(i + 1, stage)]
                units += [(f"{fuse}.{j}.{k}.0", f"{fuse}.{j}.{k}.1") for j in range(i) for k in range(i - j)]
    return {f"{conv}.weight" for conv, _ in units} | {f"{norm}.{name}" for _, norm in units for name in NORM}


@pytest.mark.parametrize("whole", [HRNetOCR(19), TINY], ids=["w48", "tiny"])
def test_keys_of_the_backbone(whole):
    net = HRNet(**{field.name: getattr(whole, field.name) for field in dataclasses.fields(HRNet) if field.name in SIZES})
    parts = {kind: tree["backbone"] for kind, tree in shapes(whole).items()}
    like = {path: np.broadcast_to(np.int8(0), x.shape) for path, x in safetensors_io.flatten(parts).items()}
    sizes = net.modules, net.blocks, net.bottlenecks, net.stem != 4 * net.bottleneck_width
    expected = backbone_keys(*sizes)
    assert set(walk.to_source(like, IMAGENET_LAYOUT)) == expected and len(expected) == {48: 1525, 4: 465}[net.width]
    diga = {f"params/backbone/{path[7:]}" if path[0] == "p" else f"batch_stats/backbone/{path[12:]}": x for path, x in like.items()}
    assert set(walk.to_source(diga, DIGA_LAYOUT)) == {f"hrnet.{key}" for key in backbone_keys(*sizes, diga=True)}


def ocr_keys(diga):
    """Convolutions with their norms (or None), in the order of `original`: aux, pixels, query, key, value, context, fusion, classifiers."""
    if diga:
        at = "ocrnet.pixel_region_relations"
        pairs = [
            ("soft_object_regions.0", "1"),
            ("pixel_representations.0", "1"),
            ("value.0", "1"),
            ("ocr_up.0", "1"),
            ("augmented_rep.0", "1"),
        ]
        aux, pixels, value, context, fusion = ((f"ocrnet.{conv}", f"ocrnet.{conv[:-1]}{norm}") for conv, norm in pairs)
        query, key = ([(f"{at}.{name}.{n}", f"{at}.{name}.{n + 1}") for n in (0, 3)] for name in ("pixel_rep", "obj_reg_rep"))
        return aux, pixels, *query, *key, value, context, fusion, "ocrnet.soft_object_regions.3", "ocrnet.segmentation_classes.0"
    at = "ocr_distri_head.object_context_block"
    query, key = ([(f"{at}.{name}.{n}", f"{at}.{name}.{n + 1}.0") for n in (0, 2)] for name in ("f_pixel", "f_object"))
    value, context = ((f"{at}.{name}.0", f"{at}.{name}.1.0") for name in ("f_down", "f_up"))
    fusion = ("ocr_distri_head.conv_bn_dropout.0", "ocr_distri_head.conv_bn_dropout.1.0")
    aux, pixels = ("aux_head.0", "aux_head.1"), ("conv3x3_ocr.0", "conv3x3_ocr.1")
    return aux, pixels, *query, *key, value, context, fusion, "aux_head.3", "cls_head"


def original(torch, source, image, diga):
    """The forward pass of the public code in evaluation mode, over a normalised image: logits, auxiliary logits, feature."""
    source = {key.removeprefix("hrnet."): value for key, value in source.items()}
    net, relu = TorchState(torch, source), torch.relu
    first = "stage1" if diga else "layer1"
    names = [f"transition_stage_{n}_{n + 1}" if diga else f"transition{n}" for n in (1, 2, 3)]
    unit = lambda x, at, stride=1: relu(net.norm(net.conv(x, at[0], stride), at[1]))
    up = lambda x, like: net.f.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)
    x = unit(unit(nchw(torch, image), ("conv1", "bn1"), 2), ("conv2", "bn2"), 2)
    for block in range(SIZES["bottlenecks"]):
        x = net.bottleneck(x, f"{first}.{block}", stride_in_1x1=False)
    maps = [x]
    for n, modules in enumerate(SIZES["modules"], 1):
        new = unit(maps[-1], (f"{names[n - 1]}.{n}.0.0", f"{names[n - 1]}.{n}.0.1"), 2)
        maps = [unit(maps[0], (f"{names[0]}.0.0", f"{names[0]}.0.1"))] if n == 1 else maps
        maps.append(new)
        for m in range(modules):
            at = f"stage{n + 1}.{m}"
            for i in range(len(maps)):
                for b in range(SIZES["blocks"]):
                    block = f"{at}.branches.{i}.{b}"
                    y = unit(maps[i], (f"{block}.conv1", f"{block}.bn1"))
                    maps[i] = relu(maps[i] + net.norm(net.conv(y, f"{block}.conv2"), f"{block}.bn2"))
            fused = []
            for i in range(len(maps)):
                total = maps[i]
                for j in range(len(maps)):
                    fuse, y = f"{at}.fuse_layers.{i}.{j}", maps[j]
                    if j > i:
                        total = total + up(net.norm(net.conv(y, f"{fuse}.0"), f"{fuse}.1"), maps[i])
                    for k in range(i - j):
                        y = net.norm(net.conv(y, f"{fuse}.{k}.0", 2), f"{fuse}.{k}.1")
                        y = relu(y) if k < i - j - 1 else y
                    total = total + y if j < i else total
                fused.append(relu(total))
            maps = fused
    x = torch.cat([maps[0], *(up(y, maps[0]) for y in maps[1:])], 1)
    aux, pixels, query1, query2, key1, key2, value, context, fusion, aux_last, last = ocr_keys(diga)
    logits = net.conv(unit(x, aux), aux_last)
    x = unit(x, pixels)
    regions = torch.einsum("bkn,bcn->bck", torch.softmax(logits.flatten(2), 2), x.flatten(2))[..., None]
    query, keys = (unit(unit(y, a), b).flatten(2) for y, a, b in ((x, query1, query2), (regions, key1, key2)))
    weight = torch.softmax(torch.einsum("bcn,bck->bnk", query, keys) * TINY.key_channels**-0.5, -1)
    seen = torch.einsum("bnk,bck->bcn", weight, unit(regions, value).flatten(2)).unflatten(2, x.shape[2:])
    feature = unit(torch.cat([unit(seen, context), x], 1), fusion)
    return {"logits": nhwc(net.conv(feature, last)), "aux_logits": nhwc(logits), "features": nhwc(feature)}


@pytest.mark.parametrize("name", FORMS)
def test_equals_the_original_under_its_own_names(name):
    torch = pytest.importorskip("torch")
    layout, normalization = FORMS[name]
    net = TINY.clone(normalization=normalization)
    source = drawn_source(net, layout)
    arrays, _ = wrappers.unwrap(
        {f"module.model.{key}": value for key, value in source.items()} | {"module.loss.criterion.weight": np.ones(5)}
    )
    public = layouts.recognise({**arrays, "bn1.num_batches_tracked": np.array(7)}, "file")
    spec = public.model(arrays, {})
    assert public.name == name and HRNetOCR(**{key: value for key, value in spec.items() if key != "make"}) == net
    assert len(source) == 465 + 9 * 5 + 2 + 4  # two of the head's convolutions have a bias, the classifiers too
    image = np.random.default_rng(1).random((2, 70, 99, 3), np.float32)
    outputs = jax.jit(lambda v, x: net.clone(normalization="none").apply(v, x))(variables_of(source, layout, net), image)
    for key, value in original(torch, source, image, name == "diga_hrnet").items():
        assert value.shape[1:3] == (18, 25)
        np.testing.assert_allclose(outputs[key], value, atol=1e-4 * np.abs(value).max(), err_msg=key)


def test_an_imagenet_file_is_the_backbone_and_its_classifier_is_left_out():
    net = HRNet(**SIZES)
    source = drawn_source(net, IMAGENET_LAYOUT)
    rest = ("incre_modules.0.0.conv1.weight", "downsamp_modules.1.0.bias", "final_layer.1.running_mean", "classifier.weight")
    full = source | {key: np.zeros(2, np.float32) for key in rest} | {"bn2.num_batches_tracked": np.array(3)}
    public = layouts.recognise(full, "file")
    assert public.name == "hrnet_imagenet" and HRNet(**{k: v for k, v in public.model(full, {}).items() if k != "make"}) == net
    flat = walk.to_segjax(full, public.layout(full), safetensors_io.flatten(shapes(net)))
    here = safetensors_io.flatten(shapes(TINY))
    assert {path.replace("/", "/backbone/", 1) for path in flat} == {path for path in here if "/backbone/" in path}
    with pytest.raises(WeightsError, match="layout hrnet_imagenet: modules .* expected an HRNetV2"):
        public.model({key: value for key, value in full.items() if "branches.1" not in key}, {})
    with pytest.raises(WeightsError, match=r"layout hrnet_ocr: lacks .*f_down\.0\.weight, cls_head\.weight"):
        layouts.known()["hrnet_ocr"].model(full, {})


def test_the_head_trains():
    head = OCRHead(5, 12, 6, dropout=0.5)
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 60)).astype(np.float32)
    state = variables_of(drawn_source(TINY, OCR_LAYOUT), OCR_LAYOUT, TINY)
    params, stats = state["params"]["head"], state["batch_stats"]["head"]

    def loss(params):
        rngs = {"dropout": jax.random.key(2)}
        (logits, aux, feature), changed = head.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"], rngs=rngs)
        return jnp.square(logits).mean() + jnp.square(aux).mean(), (feature, changed["batch_stats"])

    gradients, (feature, changed) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    assert 0.2 < np.all(np.asarray(feature) == 0, axis=(1, 2)).mean() < 0.9
    assert all(np.abs(leaf).max() > 0 for path, leaf in safetensors_io.flatten(gradients).items() if not path.endswith("conv/bias"))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), changed, stats)))


def test_a_module_trains():
    net, draw = HighResolutionModule((4, 6), blocks=2), np.random.default_rng(0).normal
    maps = [draw(size=(2, *size)).astype(np.float32) for size in ((7, 9, 4), (4, 5, 6))]
    variables = jax.eval_shape(lambda key: net.init(key, maps, train=False), jax.random.key(0))
    variables = jax.tree.map(lambda x: np.abs(draw(size=x.shape)).astype(np.float32), variables)

    def loss(params):
        (outputs, _), changed = net.apply({**variables, "params": params}, maps, train=True, mutable=["batch_stats"])
        return sum(jnp.square(x).mean() for x in outputs), (outputs, changed["batch_stats"])

    gradients, (outputs, changed) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    assert [x.shape for x in outputs] == [x.shape for x in maps]
    assert changed["branch1"]["unit2"]["norm"]["mean"].shape == (2, 6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), changed, variables["batch_stats"])))
