"""The tables of Mask2Former: strict, both ways, to the byte; transformers reads what is written; full-size names of every public form."""

import json
import re

import jax
import numpy as np
import pytest
from golden import Golden
from open_clip_keys import FULL

from segjax import cli
from segjax.errors import WeightsError
from segjax.nets.swin import VARIANTS
from segjax.ops.attention_with_bias import relative_index
from segjax.verbs import build, networks
from segjax.verbs.variables import shapes
from segjax.weights import layouts, safetensors_io, walk
from segjax.weights.mask2former_detectron2 import CLOUDS, MASK2FORMER_DETECTRON2
from segjax.weights.mask2former_hf import MASK2FORMER_HF

FOLDER = "mask2former_hf"


def count(flat, prefix):
    """The parameters under a path."""
    return sum(int(np.prod(leaf.shape)) for path, leaf in flat.items() if path.startswith(prefix))


def same_bytes(first, second):
    assert set(first) == set(second), set(first) ^ set(second)
    assert all(first[key].tobytes() == second[key].tobytes() and first[key].shape == second[key].shape for key in first)


@pytest.fixture(scope="module")
def golden(goldens):
    return Golden(goldens / FOLDER)


def test_there_and_back_is_bit_equal(golden):
    assert golden.public is MASK2FORMER_HF
    golden.check_the_way_back(())


def test_the_published_form_with_its_buffers(golden):
    """transformers 4 stored the index of every bias table, and neither `swin.layernorm` nor, when bare, the loss's weights."""
    extra = ("swin.layernorm", "criterion")
    source = {key: value for key, value in golden.source.items() if not any(part in key for part in extra)}
    index = {key.replace("bias_table", "index"): relative_index(4) for key in source if key.endswith("relative_position_bias_table")}
    source |= index
    assert layouts.recognise(source, "published") is MASK2FORMER_HF and len(index) == 6
    spec = MASK2FORMER_HF.model(source, golden.config)
    assert not spec["loss_weights"] and not spec["backbone_final_norm"]
    like = safetensors_io.flatten(shapes(build.resolve(spec, "published")))
    form = MASK2FORMER_HF.layout(source)
    same_bytes(walk.to_source(walk.to_segjax(source, form, like), form), source)


def test_the_wrong_files_are_told(golden):
    other = {"hidden_dim": 32, "backbone_config": golden.config["backbone_config"] | {"depths": [2, 2, 2, 1]}}
    with pytest.raises(WeightsError, match="does not describe the weights beside it: hidden_dim, depths differ"):
        MASK2FORMER_HF.model(golden.source, golden.config | other)
    labels = {"id2label": {str(n): "" for n in range(6)}, "decoder_layers": 10}
    with pytest.raises(WeightsError, match="id2label, decoder_layers differ"):
        MASK2FORMER_HF.model(golden.source, golden.config | labels)
    with pytest.raises(WeightsError, match="class_embed/kernel"):  # a network of other classes
        walk.to_segjax(golden.source, MASK2FORMER_HF.layout(golden.source), golden.shapes(golden.net(num_classes=6)))
    with pytest.raises(WeightsError, match="backbone_config.model_type='resnet'"):
        MASK2FORMER_HF.model(golden.source, golden.config | {"backbone_config": {"model_type": "resnet"}})
    with pytest.raises(WeightsError, match="5 heads do not divide 48 places"):
        MASK2FORMER_HF.model(golden.source, golden.config | {"num_attention_heads": 5})
    assert MASK2FORMER_HF.model(golden.source, {})["heads"] == 4  # as many as leave four points each
    with pytest.raises(WeightsError, match=r"unused source keys 1: more.*|parameters without a source 1"):
        walk.to_segjax(golden.source | {"more": np.zeros(1)}, MASK2FORMER_HF.layout(golden.source), golden.shapes(golden.net()))
    cut = {key: value for key, value in golden.source.items() if "mask_projection.bias" not in key}
    with pytest.raises(WeightsError, match="parameters without a source 1: params/pixel_decoder/mask_features/bias"):
        walk.to_segjax(cut, MASK2FORMER_HF.layout(cut), golden.shapes(golden.net()))


OTHER = dict(feature_size=32, mask_feature_size=48, hidden_dim=40, encoder_feedforward_dim=24, dim_feedforward=56, encoder_layers=1,
             decoder_layers=6, num_attention_heads=2, num_queries=5, num_labels=3, pre_norm=True, activation_function="gelu")  # fmt: skip
OTHER_SWIN = dict(embed_dim=8, depths=[1, 3, 1, 2], num_heads=[1, 2, 2, 4], window_size=3, mlp_ratio=2.5, qkv_bias=False)


def drawn_model(transformers, torch):
    """transformers' network at other sizes, no parameter at its default, and its outputs at a size that is no multiple of anything."""
    stages = [f"stage{n}" for n in range(1, 5)]
    config = transformers.Mask2FormerConfig(backbone_config=transformers.SwinConfig(**OTHER_SWIN, out_features=stages), **OTHER)
    torch.manual_seed(3)
    model = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) * 0.4 + 0.8 if value.dim() == 1 else torch.randn_like(value) * value.shape[-1] ** -0.5)
    return model, torch.randn(2, 3, 50, 75)


def test_another_network_of_transformers_there_and_back(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model, image = drawn_model(transformers, torch)
    with torch.no_grad():
        want = model(image, output_auxiliary_logits=True)
    first, ours, again = tmp_path / "theirs", tmp_path / "ours.safetensors", tmp_path / "again"
    model.save_pretrained(first)
    assert cli.main(["convert", f"--input={first}", f"--output={ours}"]) == 0
    network = networks.load(ours, settings={"normalization": "none"})
    run = jax.jit(lambda v, x: network.module.apply(v, x, method=lambda net, x: net.predictions(net.features(x))))
    got = run(network.variables, np.moveaxis(image.numpy(), 1, -1))
    pairs = [(want.class_queries_logits, want.masks_queries_logits, got["class_logits"], got["mask_logits"])]
    for n, aux in enumerate(want.auxiliary_logits):
        ours_aux = got["aux"]["class_logits"][n], got["aux"]["mask_logits"][n]
        pairs.append((aux["class_queries_logits"], aux["masks_queries_logits"], *ours_aux))
    assert len(pairs) == 6
    for classes, masks, our_classes, our_masks in pairs:
        np.testing.assert_allclose(our_classes, classes, atol=1e-4)
        np.testing.assert_allclose(np.moveaxis(our_masks, -1, 1), masks, atol=1e-4 * float(masks.abs().max()))
    assert cli.main(["convert", f"--input={ours}", "--to=mask2former_hf", f"--output={again}/"]) == 0
    same_bytes(*(safetensors_io.read(folder / "model.safetensors")[0] for folder in (first, again)))
    read, about = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(again, output_loading_info=True)
    assert not any(about[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        back = read.eval()(image)
    torch.testing.assert_close(back.masks_queries_logits, want.masks_queries_logits, rtol=0, atol=0)
    written = json.loads((again / "config.json").read_text())
    theirs = json.loads((first / "config.json").read_text())
    for part, known in ((written, theirs), (written["backbone_config"], theirs["backbone_config"])):
        assert not {key: value for key, value in part.items() if key != "backbone_config" and known[key] != value}


class Shape:
    """A tensor of which only the shape is known."""

    def __init__(self, *shape):
        self.shape, self.ndim = shape, len(shape)


def fits(public, source, config=None, ignored=()):
    """A full-size key list (key -> Shape) is recognised, used and set completely. Parameters of all, the pixel decoder and the decoder."""
    assert layouts.recognise(source, "shapes") is public
    form = public.layout(source)
    module = build.resolve(public.model(source, config or {}), public.name)
    like = safetensors_io.flatten(shapes(module))
    light = {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in like.items()}
    got = {key: value.shape for key, value in walk.to_source(light, form).items()}
    want = {key: value.shape for key, value in source.items() if not key.startswith(ignored)}
    assert got == want, sorted(set(got.items()) ^ set(want.items()))[:10]
    return tuple(count(like, f"params/{part}") for part in ("", "pixel_decoder", "decoder"))


@pytest.mark.parametrize(("variant", "parameters"), [("tiny", 47_407_502), ("large", 215_458_184)])
def test_full_size_names_of_transformers(variant, parameters):
    """The counts are the paper's 47 and 216 million (100 queries, 19 classes), and hold `swin.layernorm`, which no output depends on."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    fields = dict(VARIANTS[variant])
    swin = transformers.SwinConfig(**fields, window_size=fields.pop("window"), out_features=[f"stage{n}" for n in range(1, 5)])
    config = transformers.Mask2FormerConfig(backbone_config=swin, num_labels=19)
    with torch.device("meta"):
        model = transformers.Mask2FormerForUniversalSegmentation(config)
    source = {key: Shape(*value.shape) for key, value in model.state_dict().items()}
    assert fits(MASK2FORMER_HF, source, config.to_dict())[0] == sum(x.numel() for x in model.parameters()) == parameters


def linear(name, out, into):
    return {f"{name}.weight": Shape(out, into), f"{name}.bias": Shape(out)}


def norm(name, width, batch=False):
    running = {f"{name}.running_mean": Shape(width), f"{name}.running_var": Shape(width)} if batch else {}
    return {f"{name}.weight": Shape(width), f"{name}.bias": Shape(width)} | running


def head(widths, query="query_feat"):
    """The names of `sem_seg_head` at full size, as msdeformattn.py and mask2former_transformer_decoder.py declare them."""
    pixels, queries = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    found = {"criterion.empty_weight": Shape(20), f"{pixels}.transformer.level_embed": Shape(3, 256)}
    for n, width in enumerate(widths[:0:-1]):
        found |= {f"{pixels}.input_proj.{n}.0.weight": Shape(256, width, 1, 1), f"{pixels}.input_proj.{n}.0.bias": Shape(256)}
        found |= norm(f"{pixels}.input_proj.{n}.1", 256)
    for n in range(6):
        at = f"{pixels}.transformer.encoder.layers.{n}"
        for name, out in (("sampling_offsets", 192), ("attention_weights", 96), ("value_proj", 256), ("output_proj", 256)):
            found |= linear(f"{at}.self_attn.{name}", out, 256)
        found |= linear(f"{at}.linear1", 1024, 256) | linear(f"{at}.linear2", 256, 1024)
        found |= norm(f"{at}.norm1", 256) | norm(f"{at}.norm2", 256)
    found |= {f"{pixels}.adapter_1.weight": Shape(256, widths[0], 1, 1), f"{pixels}.layer_1.weight": Shape(256, 256, 3, 3)}
    found |= norm(f"{pixels}.adapter_1.norm", 256) | norm(f"{pixels}.layer_1.norm", 256)
    found |= {f"{pixels}.mask_features.weight": Shape(256, 256, 1, 1), f"{pixels}.mask_features.bias": Shape(256)}
    for n in range(9):
        for kind, inner in (("self_attention", "self_attn"), ("cross_attention", "multihead_attn")):
            at = f"{queries}.transformer_{kind}_layers.{n}"
            found |= {f"{at}.{inner}.in_proj_weight": Shape(768, 256), f"{at}.{inner}.in_proj_bias": Shape(768)}
            found |= linear(f"{at}.{inner}.out_proj", 256, 256) | norm(f"{at}.norm", 256)
        at = f"{queries}.transformer_ffn_layers.{n}"
        found |= linear(f"{at}.linear1", 2048, 256) | linear(f"{at}.linear2", 256, 2048) | norm(f"{at}.norm", 256)
        found |= {} if n else {f"{queries}.{name}.weight": Shape(rows, 256) for name, rows in ((query, 100), ("query_embed", 100))}
    found |= norm(f"{queries}.decoder_norm", 256) | {f"{queries}.level_embed.weight": Shape(3, 256)}
    for n in range(3):
        found |= linear(f"{queries}.mask_embed.layers.{n}", 256, 256)
    return found | linear(f"{queries}.class_embed", 20, 256)


def d2_swin(embed_dim, depths, num_heads, window):
    """The names of detectron2's D2SwinTransformer."""
    found = {"backbone.patch_embed.proj.weight": Shape(embed_dim, 3, 4, 4), "backbone.patch_embed.proj.bias": Shape(embed_dim)}
    found |= norm("backbone.patch_embed.norm", embed_dim)
    for n, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        width = embed_dim * 2**n
        for block in range(depth):
            at = f"backbone.layers.{n}.blocks.{block}"
            found |= norm(f"{at}.norm1", width) | norm(f"{at}.norm2", width) | linear(f"{at}.attn.qkv", 3 * width, width)
            found |= linear(f"{at}.attn.proj", width, width)
            found |= linear(f"{at}.mlp.fc1", 4 * width, width) | linear(f"{at}.mlp.fc2", width, 4 * width)
            found |= {f"{at}.attn.relative_position_bias_table": Shape((2 * window - 1) ** 2, heads)}
            found |= {f"{at}.attn.relative_position_index": Shape(window**2, window**2)}
        found |= norm(f"backbone.norm{n}", width)
        if n < 3:
            found |= {f"backbone.layers.{n}.downsample.reduction.weight": Shape(2 * width, 4 * width)}
            found |= norm(f"backbone.layers.{n}.downsample.norm", 4 * width)
    return found


def d2_resnet50():
    """The names of detectron2's ResNet-50."""
    found = {"backbone.stem.conv1.weight": Shape(64, 3, 7, 7)} | norm("backbone.stem.conv1.norm", 64, batch=True)
    into = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 2):
        width = 64 * 2 ** (stage - 2)
        for block in range(blocks):
            at = f"backbone.res{stage}.{block}"
            convs = {"conv1": (width, into, 1, 1), "conv2": (width, width, 3, 3), "conv3": (4 * width, width, 1, 1)}
            for name, shape in (convs | ({} if block else {"shortcut": (4 * width, into, 1, 1)})).items():
                found |= {f"{at}.{name}.weight": Shape(*shape)} | norm(f"{at}.{name}.norm", shape[0], batch=True)
            into = 4 * width
    return found


def test_full_size_names_of_detectron2_over_a_swin():
    large = VARIANTS["large"]
    source = d2_swin(**large) | head((192, 384, 768, 1536))
    assert fits(MASK2FORMER_DETECTRON2, source)[0] == 215_458_184 - 2 * 1536  # transformers' last norm
    spec = MASK2FORMER_DETECTRON2.model(source, {})
    assert {f"backbone_{key}": value for key, value in large.items()}.items() <= spec.items() and (spec["heads"], spec["points"]) == (8, 4)


def test_full_size_names_of_detectron2_over_a_resnet():
    source = d2_resnet50() | head((256, 512, 1024, 2048), "static_query")
    whole, pixel_decoder, decoder = fits(MASK2FORMER_DETECTRON2, source)
    assert round(whole / 1e6) == 44 and abs(pixel_decoder - 6.04e6) < 5e3 and abs(decoder - 14.46e6) < 5e3  # the paper's table 1: 44 M
    spec = MASK2FORMER_DETECTRON2.model(source, {})
    assert spec["backbone_depth"] == (3, 4, 6, 3) and spec["backbone_width"] == 64 and spec["num_classes"] == 19 and spec["queries"] == 100


@pytest.mark.parametrize(
    ("clip", "widths", "told"),
    [
        ("RN101", (256, 512, 1024, 2048), {"backbone": "clip_resnet", "backbone_embed_dim": 512, "backbone_heads": 32}),
        ("convnext_large_d_320", (192, 384, 768, 1536), {"backbone": "clip_convnext", "backbone_embed_dim": 768, "backbone_head": "mlp"}),
    ],
)
def test_full_size_names_of_clouds(clip, widths, told):
    """open_clip's model under `backbone.clip_model`; its text tower, the void embedding, the teacher and SAM are left out."""
    source = {f"backbone.clip_model.{key}": Shape(*shape) for key, shape in FULL[clip].items()} | head(widths)
    others = ("void_embedding.weight", "sem_seg_head_ema.predictor.query_feat.weight", "sam.sam.mask_decoder.iou_token.weight")
    source |= {key: Shape(1, 256) for key in others}
    unused = {key for key in source if key in others or ("clip_model." in key and ".visual." not in key)}
    pixel_decoder = fits(CLOUDS, source, ignored=tuple(unused))[1]
    assert abs(pixel_decoder - {192: 5.79e6, 256: 6.04e6}[widths[0]]) < 5e3
    assert {key for key in source if any(re.fullmatch(pattern, key) for pattern in CLOUDS.layout(source).ignore)} == unused
    assert (told | {"normalization": "clip", "frozen": True}).items() <= CLOUDS.model(source, {}).items()
