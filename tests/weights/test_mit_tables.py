"""MiT, SegFormer and DAFormer from every public spelling: outputs and middle features, bit-equal ways back, full-size key lists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden

from segjax.errors import WeightsError
from segjax.nets.daformer import DAFormer
from segjax.nets.mit import Block, EfficientAttention, LayerNorm, PatchEmbed
from segjax.nets.segformer import SegFormer
from segjax.verbs import build, variables
from segjax.weights import layouts, safetensors_io, walk, wrappers

FILES = {
    "mit_nvlabs": ("mit_nvlabs/mit_tiny.pth", "mit_nvlabs"),
    "segformer_nvlabs": ("segformer_nvlabs/segformer.tiny.pth", "segformer_nvlabs"),
    "segformer_hf": ("segformer_hf", "segformer_hf"),
    "daformer": ("daformer_sepaspp/latest.pth", "daformer"),
    "daformer_conv1": ("daformer_conv1/iter_40000.pth", "daformer"),
}
NETWORKS = [name for name in FILES if name != "mit_nvlabs"]


@pytest.fixture(scope="module")
def golden(goldens):
    made = {}

    def get(name, **options) -> Golden:
        key = (name, *options.items())
        if key not in made:
            made[key] = Golden(goldens / FILES[name][0], **options)
            assert made[key].public.name == FILES[name][1]
        return made[key]

    return get


def test_mit_gives_every_stage_and_the_middle_of_its_blocks(golden):
    g = golden("mit_nvlabs")
    net = g.net()

    def run(weights, image):
        params, stages = weights["params"], net.apply(weights, image)
        first = lambda n: jax.tree.map(lambda leaf: leaf[0], params[f"block{n}"])

        def embed(n, x):
            module = PatchEmbed(net.dims[n - 1], net.patch_sizes[n - 1], net.strides[n - 1], 1e-5)
            return module.apply({"params": params[f"patch_embed{n}"]}, x)

        def block(n, x):
            module = Block(net.num_heads[n - 1], net.sr_ratios[n - 1], 4 * net.dims[n - 1], 1e-6, 1e-5)
            return module.apply({"params": first(n)}, x, 0.0)[0]

        patches = embed(1, image)
        normal = LayerNorm(1e-6).apply({"params": first(2)["norm1"]}, embed(2, stages[0]))
        attended = EfficientAttention(2, 4, 1e-5).apply({"params": first(2)["attn"]}, normal)
        blocks = {"mid_block1_0": block(1, patches), "mid_block4_0": block(4, embed(4, stages[2]))}
        return stages, {"mid_patch_embed1": patches, "mid_block2_0_attn": attended, **blocks}

    stages, middle = jax.jit(run)(g.variables(net), g.arrays["in_image"])
    for n, stage in enumerate(stages, 1):
        g.check(f"out_stage{n}", stage)
    for name, value in middle.items():
        g.check(name, np.asarray(value).reshape(g.arrays[name].shape))


WANTED = {"backbone", "linear_fuse", "fuse_layer", "embed_layers_3"}


@functools.partial(jax.jit, static_argnums=0)
def looked_into(net, weights, image):
    """Outputs, and what the modules that are WANTED gave."""
    return net.apply(weights, image, capture_intermediates=lambda module, _: module.name in WANTED, mutable=["intermediates"])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_the_originals_logits_and_features(golden, name):
    g = golden(name)
    outputs, seen = looked_into(g.net(normalization="none"), g.variables(g.net()), g.arrays["in_image"])
    g.check("out_logits", outputs["logits"])
    seen = seen["intermediates"]
    for n, stage in enumerate(seen["backbone"]["__call__"][0], 1):
        g.check(f"mid_stage{n}", stage)
    assert np.array_equal(outputs["features"], seen["backbone"]["__call__"][0][-1])
    for module, (result,) in ((module, found["__call__"]) for module, found in seen["decode_head"].items()):
        if name != "segformer_hf":  # stores no middle of its head
            stored = f"mid_decode_head_{module}"
            g.check(stored, np.asarray(result).reshape(g.arrays[stored].shape))
            assert len([key for key in g.arrays if key.startswith("mid_decode_head")]) == len(seen["decode_head"])


def test_the_teacher_of_a_training_checkpoint_is_a_network_of_its_own(golden):
    g = golden("daformer", branch="ema_model")
    outputs, _ = looked_into(g.net(normalization="none"), g.variables(g.net()), g.arrays["in_image"])
    g.check("out_logits_ema", outputs["logits"])
    assert np.abs(np.asarray(outputs["logits"]) - g.arrays["out_logits"]).max() > 0.1


@pytest.mark.parametrize("name", ["mit_nvlabs", "daformer"])
def test_bfloat16_stays_near(golden, name):
    g = golden(name)
    net = g.net(dtype=jnp.bfloat16) if name == "mit_nvlabs" else g.net(dtype=jnp.bfloat16, normalization="none")
    outputs = jax.jit(lambda v, x: net.apply(v, x))(g.variables(g.net()), g.arrays["in_image"])
    if name == "mit_nvlabs":
        for n, stage in enumerate(outputs, 1):
            assert stage.dtype == jnp.bfloat16
            g.check_half(f"out_stage{n}", stage)
    else:
        assert outputs["logits"].dtype == jnp.float32
        g.check_half("out_logits", outputs["logits"])


@pytest.mark.parametrize("name", FILES)
def test_there_and_back_is_bit_equal(golden, name):
    unused = {"mit_nvlabs": r"head\..*", "segformer_nvlabs": r"decode_head\.conv_seg\..*"}.get(name, "nothing")
    golden(name).check_the_way_back(ignored=(r".*\.num_batches_tracked", unused))


def _mmseg(source, prefix):
    """NVlabs' encoder as mmsegmentation's own converter renames it: query above key and value, the MLP as 1x1 convolutions."""
    found = {}
    for key, value in source.items():
        if not key.startswith(prefix + ("patch_embed", "block", "norm")[0]) and "block" not in key and f"{prefix}norm" not in key:
            continue
        name = key.removeprefix(prefix)
        kind, stage = next((kind, int(name[len(kind)]) - 1) for kind in ("patch_embed", "block", "norm") if name.startswith(kind))
        rest = name[len(kind) + 2 :]
        if kind == "block":
            block, rest = rest.split(".", 1)
            if rest.startswith("attn.kv"):
                continue
            if rest.startswith("attn.q."):
                value = np.concatenate([value, source[key.replace("attn.q.", "attn.kv.")]])
            if rest in ("mlp.fc1.weight", "mlp.fc2.weight"):
                value = value[:, :, None, None]
            changes = {"attn.q.": "attn.attn.in_proj_", "attn.proj": "attn.attn.out_proj", "mlp.fc1": "ffn.layers.0"}
            for old, new in (changes | {"mlp.dwconv.dwconv": "ffn.layers.1", "mlp.fc2": "ffn.layers.4"}).items():
                rest = rest.replace(old, new)
            rest = f"1.{block}.{rest}"
        else:
            rest = {"patch_embed": "0.", "norm": "2."}[kind] + rest.replace("proj.", "projection.")
        found[f"{prefix}layers.{stage}.{rest}"] = value
    return found


def _converted(source, net):
    public = layouts.recognise(source, "renamed")
    like = safetensors_io.flatten(variables.shapes(net))
    flat = walk.to_segjax(source, public.layout(source), like)
    back = walk.to_source(flat, public.layout(flat))
    assert all(back[key].tobytes() == np.asarray(source[key], order="C").tobytes() for key in back)
    assert all(key in back or key.endswith("num_batches_tracked") for key in source)
    return public, flat


def test_mmsegs_encoder_and_head(golden):
    g = golden("mit_nvlabs")
    public, flat = _converted(_mmseg(g.source, ""), g.net())
    expected = g.convert(g.net())
    assert public.name == "mit_mmseg" and all(np.array_equal(flat[path], expected[path]) for path in expected)
    assert public.model(_mmseg(g.source, ""), {}) == {**g.spec, "patch_epsilon": 1e-6}

    g = golden("segformer_nvlabs")
    source, draw = _mmseg(g.source, "backbone."), np.random.default_rng(0).standard_normal
    for n, dim in enumerate(g.spec["dims"]):
        source[f"decode_head.convs.{n}.conv.weight"] = draw((24, dim, 1, 1)).astype(np.float32)
        for name in ("weight", "bias", "running_mean", "running_var"):
            source[f"decode_head.convs.{n}.bn.{name}"] = np.abs(draw(24)).astype(np.float32)
    for key, value in g.source.items():
        if key.startswith(("decode_head.linear_fuse", "decode_head.linear_pred")):
            source[key.replace("linear_fuse", "fusion_conv").replace("linear_pred", "conv_seg")] = value
    spec = layouts.recognise(source, "renamed").model(source, {})
    net = build.resolve({**spec, "normalization": "none"}, "test")
    public, flat = _converted(source, net)
    assert public.name == "segformer_mmseg" and net.embed == "conv"

    run = lambda v, x: net.apply(v, x, capture_intermediates=lambda m, _: m.name == "backbone", mutable=["intermediates"])
    got, seen = jax.jit(run)(safetensors_io.unflatten(flat), g.arrays["in_image"])
    stages = seen["intermediates"]["backbone"]["__call__"][0]
    torch = pytest.importorskip("torch")
    take = lambda key: torch.from_numpy(np.array(source[f"decode_head.{key}"]))

    def conv_norm(x, conv, norm):
        y = torch.nn.functional.conv2d(x, take(f"{conv}.weight"))
        y = torch.nn.functional.batch_norm(y, *(take(f"{norm}.{name}") for name in ("running_mean", "running_var", "weight", "bias")))
        return torch.relu(y)

    maps = [conv_norm(torch.tensor(np.moveaxis(np.asarray(x), -1, 1)), f"convs.{n}.conv", f"convs.{n}.bn") for n, x in enumerate(stages)]
    maps = [torch.nn.functional.interpolate(x, maps[0].shape[2:], mode="bilinear") for x in maps]
    fused = conv_norm(torch.cat(maps, 1), "fusion_conv.conv", "fusion_conv.bn")
    logits = torch.nn.functional.conv2d(fused, take("conv_seg.weight"), take("conv_seg.bias")).permute(0, 2, 3, 1)
    np.testing.assert_allclose(got["logits"], logits, atol=1e-4 * float(logits.abs().max()))


def test_daformers_spelling_of_segformer_has_the_other_order(golden):
    g = golden("segformer_nvlabs")
    source = {}
    for key, value in g.source.items():
        if ".conv_seg." in key:
            continue
        for s in range(1, 5):
            key = key.replace(f"linear_c{s}.", f"linear_c.{s - 1}.")
        if key == "decode_head.linear_fuse.conv.weight":
            value = np.concatenate(np.split(value, 4, axis=1)[::-1], axis=1)
        source[key] = value
    public, flat = _converted(source, g.net())
    expected = g.convert(g.net())
    assert public.name == "segformer_daformer" and all(np.array_equal(flat[path], expected[path]) for path in expected)
    assert public.model(source, {}) == g.spec


def _attention(dims, outputs, channels=6):
    """The light second head of an HRDA, by its names in the authors' code."""
    draw, prefix = np.random.default_rng(0).standard_normal, "decode_head.scale_attention."
    found = {f"{prefix}embed_layers.{n}.proj.weight": draw((channels, dim)) for n, dim in enumerate(dims)}
    found |= {f"{prefix}embed_layers.{n}.proj.bias": draw(channels) for n in range(len(dims))}
    found |= {f"{prefix}fuse_layer.bn.{name}": np.abs(draw(channels)) for name in ("weight", "bias", "running_mean", "running_var")}
    found |= {f"{prefix}fuse_layer.conv.weight": draw((channels, len(dims) * channels, 1, 1))}
    found |= {f"{prefix}conv_seg.weight": draw((outputs, channels, 1, 1)), f"{prefix}conv_seg.bias": draw(outputs)}
    return {key: value.astype(np.float32) for key, value in found.items()}


def test_hrda_of_a_training_checkpoint_both_ways(golden):
    g = golden("daformer")
    student = {key.replace("decode_head.", "decode_head.head."): value for key, value in g.source.items()}
    student |= _attention(g.spec["dims"], 19)
    teacher = {key: value + 1 if value.dtype == np.float32 else value for key, value in student.items()}
    saved = {
        f"{name}.{key}": x for name, net in (("model", student), ("ema_model", teacher), ("imnet_model", student)) for key, x in net.items()
    }
    expected = g.convert(g.net())
    for branch, shift in (("model", 0), ("ema_model", 1)):
        source, removed = wrappers.unwrap({"state_dict": saved, "meta": {}}, branch=branch)
        assert removed == ("state_dict", f"{branch}.")
        public = layouts.recognise(source, "file")
        spec = public.model(source, {})
        assert spec == {**g.spec, "make": "segjax.nets.hrda:HRDA", "attention": "classwise", "attention_channels": 6}
        public, flat = _converted(source, build.resolve(spec, "test"))
        assert public.name == "hrda"
        for path, value in expected.items():
            np.testing.assert_array_equal(flat[path.replace("decode_head/", "decode_head/head/")], value + shift)
    part = layouts.known()["hrda_daformer"]
    assert part.model(student, {}) == g.spec
    flat = walk.to_segjax(student, part.layout(student), g.shapes(g.net()))
    assert all(np.array_equal(flat[path], expected[path]) for path in expected)
    assert layouts.known()["hrda"].model(student | _attention(g.spec["dims"], 1), {})["attention"] == "single"
    with pytest.raises(WeightsError, match="a scale attention with 7 outputs: expected 1, or one for each of the 19 classes"):
        layouts.known()["hrda"].model(student | _attention(g.spec["dims"], 7), {})


@pytest.mark.parametrize("name", ["dlv2", "hrda_dlv2"])
def test_deeplab_under_daformer_and_hrda_both_ways(name):
    """Keys written out by hand for the head, mmsegmentation's for the ResNetV1c (checked in test_tables)."""
    make = {"dlv2": "segjax.nets.dlv2:DLV2", "hrda_dlv2": "segjax.nets.hrda:HRDADLV2"}[name]
    net = build.resolve({"make": make, "num_classes": 3, "backbone": "resnet50", "width": 4}, "test")
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in safetensors_io.flatten(variables.shapes(net)).items()}
    source = walk.to_source(flat, layouts.known()[name].layout(flat))
    heads = {"dlv2": ("decode_head.",), "hrda_dlv2": ("decode_head.head.", "decode_head.scale_attention.")}[name]
    shapes = {"weight": (3, 128, 3, 3), "bias": (3,)}
    atrous = {f"{head}aspp_modules.{n}.conv.{leaf}": shape for head in heads for n in (0, 1) for leaf, shape in shapes.items()}
    assert {key: x.shape for key, x in source.items() if key.startswith("decode_head")} == atrous
    assert source["backbone.stem.0.weight"].shape == (2, 3, 3, 3) and "backbone.layer4.2.bn3.running_var" in source
    public, again = _converted(source, net)
    assert public.name == name and all(np.array_equal(again[path], flat[path]) for path in flat)
    spec = public.model(source, {})
    assert (spec["dilations"], spec["backbone"], spec["width"], spec["num_classes"]) == ((6, 12), "resnet50", 4, 3)


def test_other_architectures_and_class_counts_are_refused(golden, goldens):
    g, hf = golden("daformer"), golden("segformer_hf")
    with pytest.raises(WeightsError, match=r"wrong shapes 2: decode_head\.conv_seg\.bias \(19,\) does not fit .*\(16,\)"):
        g.convert(g.net(num_classes=16))
    with pytest.raises(WeightsError, match=r"parameters without a source \d+: .*block3\.2.*|block3"):
        g.convert(g.net(depths=(2, 2, 3, 2)))
    with pytest.raises(WeightsError, match=r"unused source keys \d+: .*aspp_modules"):
        g.convert(g.net(fusion="conv"))
    for change, message in (
        ({"depths": [2, 2, 6, 2]}, "does not describe the weights beside it: depths differ"),
        ({"decoder_hidden_size": 256}, "decoder_hidden_size 256, the weights have 19 and 24"),
        ({"id2label": {"0": "road"}}, "says 1 classes"),
        ({"model_type": "glpn"}, "model_type 'glpn'"),
    ):
        with pytest.raises(WeightsError, match=message):
            hf.public.model(hf.source, {**hf.config, **change})
    del (cut := dict(g.source))["decode_head.embed_layers.3.proj.weight"]
    with pytest.raises(WeightsError, match=r"lacks decode_head\.embed_layers\.3"):
        g.public.model(cut, {})
    fuses = {key: value for key, value in g.source.items() if "fuse_layer.bottleneck.conv" not in key}
    with pytest.raises(WeightsError, match="segjax has conv, aspp and sepaspp"):
        g.public.model(fuses, {})


CASES = {  # full size, by shapes alone: our network, Hugging Face's config
    "b0": (SegFormer(150, variant="b0", channels=256, dropout_kind="element"), dict(num_labels=150)),
    "b5": (
        SegFormer(19, variant="b5", channels=768, dropout_kind="element"),
        dict(num_labels=19, depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_full_size_keys_and_shapes_are_hugging_faces(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    net, options = CASES[name]
    with torch.device("meta"):
        theirs = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**options)).state_dict()
    expected = {key: tuple(value.shape) for key, value in theirs.items() if not key.endswith("num_batches_tracked")}
    flat = {path: np.broadcast_to(np.int8(0), leaf.shape) for path, leaf in safetensors_io.flatten(variables.shapes(net)).items()}
    forms = {form.name: form for form in layouts.known()["segformer_hf"].forms}
    assert {key: x.shape for key, x in walk.to_source(flat, forms["segformer_hf_memory"]).items()} == expected
    on_disk = walk.to_source(flat, forms["segformer_hf"])
    assert len(on_disk) == len(expected) and "segformer.encoder.block.2.1.attention.self.query.weight" in on_disk


def test_hugging_faces_names_in_memory_are_the_same_network(golden):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    g = golden("segformer_hf")
    with torch.no_grad():
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(g.path).eval()
    memory = {key: value.numpy() for key, value in theirs.state_dict().items()}
    assert "segformer.stages.0.patch_embeddings.proj.weight" in memory
    public, flat = layouts.recognise(memory, "memory"), None
    assert public is g.public and public.model(memory, g.config) == g.spec
    flat, expected = walk.to_segjax(memory, public.layout(memory), g.shapes(g.net())), g.convert(g.net())
    assert all(np.array_equal(flat[path], expected[path]) for path in expected)
    encoder = theirs.segformer.state_dict()
    for source in ({key: value.numpy() for key, value in encoder.items()}, {f"segformer.{k}": v.numpy() for k, v in encoder.items()}):
        public = layouts.recognise(source, "encoder")
        spec = public.model(source, {})
        net = build.resolve(spec, "test")
        flat = walk.to_segjax(source, public.layout(source), safetensors_io.flatten(variables.shapes(net)))
        assert public.name == "mit_hf" and all(np.array_equal(flat[p], expected[p.replace("params/", "params/backbone/")]) for p in flat)


def test_sizes_round_up(golden):
    g = golden("daformer_conv1")
    net = g.net(normalization="imagenet")
    outputs = jax.eval_shape(lambda v, x: net.apply(v, x), variables.shapes(g.net()), jax.ShapeDtypeStruct((1, 70, 101, 3), jnp.float32))
    assert outputs["logits"].shape == (1, 18, 26, 19) and outputs["features"].shape == (1, 3, 4, 64)
    assert isinstance(net, DAFormer) and net.fusion == "conv" and not net.align_corners
