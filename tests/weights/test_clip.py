"""Public CLIPs of every kind, converted, give the originals' outputs and middle features; and the way back is bit-equal."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden

from segjax.errors import WeightsError
from segjax.nets.clip import MEAN, STD, normalized
from segjax.verbs import build, networks
from segjax.weights import layouts, safetensors_io, walk
from segjax.weights.clip_hf import CLIP_HF, CLIP_TEXT_HF, CLIP_VISION_HF
from segjax.weights.clip_openai import CLIP_OPENAI, CLIP_OPENAI_VISION

FILES = ["clip_hf_quickgelu", "clip_hf_gelu", "openclip_vit", "openclip_rn/RN50.pt", "openclip_convnext"]
HF, VIT, RESNET, CONVNEXT = FILES[:2], FILES[2], FILES[3], FILES[4]
SCALARS = ("input_resolution", "context_length", "vocab_size")


@pytest.fixture(scope="module")
def golden(goldens):
    """File -> its Golden, read once."""
    return functools.cache(lambda file: Golden(goldens / file))


def _image(golden, name="in_image"):
    """The stored image, which is normalised already, as CLIP takes it: in [0,1]."""
    return golden.arrays[name] * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32)


def _outputs(net, variables, image, ids, mask, dense_image):
    """Everything that the goldens hold, by their names."""
    options = {"at": (0, 1)} if hasattr(net.visual, "patch_size") else {}
    seen, middle = net.apply(
        variables,
        image,
        method="encode_image",
        capture_intermediates=lambda module, _: module.name in ("conv1", "ln_post"),
        mutable=["intermediates"],
        **options,
    )
    read = net.apply(variables, ids, method="encode_text", hidden=True)
    images, texts = normalized(seen["projected"]), normalized(read["projected"])
    found = {
        "out_logits_per_image": jnp.exp(variables["params"]["logit_scale"]) * images @ texts.T,
        "out_image_embeds": images,
        "out_text_embeds": texts,
        "out_image_features": seen["projected"],
        "out_text_features": read["projected"],
        "out_text_last": read["last"],
        "out_text_pooled": read["pooled"],
        "mid_text_ln_final": read["last"],
        "mid_text_block0": read["hidden"][1],
        "mid_text_hidden_0": read["hidden"][0],
        "mid_text_hidden_1": read["hidden"][1],
        "mid_avgpool": seen.get("stem"),
        "mid_layer1": seen.get("res2"),
        "mid_layer2": seen.get("res3"),
        "mid_layer4": seen.get("res5"),
        "mid_trunk_stem": seen.get("stem"),
        "mid_trunk_stages_0": seen.get("res2"),
        "mid_trunk_stages_3": seen.get("res5"),
        "mid_trunk": seen["pooled"],
        "out_vision_last": seen.get("last"),
    }
    if options:
        inner = middle["intermediates"]["visual"]
        found["mid_conv1"] = inner["conv1"]["__call__"][0]
        found["class_ln_post"] = inner["ln_post"]["__call__"][0]
        found |= {f"patches_{n}": seen[f"block{n}"] for n in options["at"]}
    if mask is not None:
        found["out_text_last_masked"] = net.apply(variables, ids, mask, method=lambda net, *args: net.text(*args))["last"]
    if dense_image is not None:
        dense = net.apply(variables, dense_image, method="encode_image")
        found |= {f"out_dense_{name}": dense[name] for name in ("stem", "res2", "res3", "res4", "res5") if name in dense}
        found["out_dense_image_features"] = dense["projected"]
    return {name: value for name, value in found.items() if value is not None}


def _run(golden, half=False):
    """The stored arrays that the network gives, by name, and the names that are missing. half: in bfloat16, no dense ones."""
    net = golden.net(**({"dtype": jnp.bfloat16} if half else {}))
    arrays = golden.arrays
    dense = _image(golden, "in_dense_image") if "in_dense_image" in arrays and not half else None
    inputs = (_image(golden), arrays["in_ids"].astype(np.int32), arrays.get("in_attention_mask"), dense)
    found = jax.jit(lambda variables, *inputs: _outputs(net, variables, *inputs))(golden.variables(golden.net()), *inputs)
    grid = lambda tokens: tokens[:, 1:].reshape(found["patches_0"].shape)
    names = {"patches_0": ("mid_ln_pre", "mid_vision_hidden_0"), "patches_1": ("mid_transformer_resblocks_0", "mid_vision_hidden_1")}
    pairs = {name: (found[name], arrays[name]) for name in arrays if name in found}
    pairs |= {name: (found[ours], grid(arrays[name])) for ours, theirs in names.items() for name in theirs if name in arrays}
    if "mid_ln_post" in arrays:
        pairs["mid_ln_post"] = (found["class_ln_post"], arrays["mid_ln_post"][:, :1])
    return pairs, [name for name in arrays if name.startswith(("out_", "mid_")) and name not in pairs]


@pytest.mark.parametrize("file", FILES)
def test_outputs_and_middle_features(golden, file):
    pairs, missing = _run(golden(file))
    assert not missing and len(pairs) >= 10
    for name, (got, stored) in pairs.items():
        np.testing.assert_allclose(np.asarray(got), stored, rtol=0, atol=golden(file).facts[name]["atol"], err_msg=name)


@pytest.mark.parametrize("file", [HF[0], RESNET, CONVNEXT])
def test_bfloat16_stays_near(golden, file):
    pairs, _ = _run(golden(file), half=True)
    for name, (got, stored) in pairs.items():
        error = np.linalg.norm(np.asarray(got, np.float32) - stored) / np.linalg.norm(stored)
        assert error < 3e-2, f"{name}: {error}"


@pytest.mark.parametrize("file", FILES)
def test_there_and_back_is_bit_equal(golden, file):
    golden(file).check_the_way_back()


@pytest.mark.parametrize("file", HF)
def test_ids_padded_with_zeros_give_the_same_scores(golden, file):
    golden = golden(file)
    net = golden.net()
    ids = golden.arrays["in_ids_openai_pad0"].astype(np.int32)
    read, both = jax.jit(lambda variables: (net.apply(variables, ids, method="encode_text"), net.apply(variables, _image(golden), ids)))(
        golden.variables(net)
    )
    golden.check("out_text_pooled", read["pooled"])
    golden.check("out_logits_per_image", both["logits_per_image"])


def _part(golden, tower, spelling):
    """The keys of one tower of a CLIPModel as its own file has them."""
    words = {"text": ("text_model.", "text_projection.weight"), "vision": ("vision_model.", "visual_projection.weight")}[tower]
    source = {key: value for key, value in golden.source.items() if key.startswith(words)}
    if spelling == "bare":
        source = {key.removeprefix(words[0]): value for key, value in source.items() if key != words[1]}
    if spelling == "buffers":
        places = len(source[f"{words[0]}embeddings.position_embedding.weight"])
        source[f"{words[0]}embeddings.position_ids"] = np.arange(places)[None]
    return source


@pytest.mark.parametrize("spelling", ["projected", "buffers", "bare"])
@pytest.mark.parametrize("tower, public", [("text", CLIP_TEXT_HF), ("vision", CLIP_VISION_HF)])
def test_a_tower_alone_in_either_spelling(golden, tmp_path, tower, public, spelling):
    golden = golden(HF[1])
    source = _part(golden, tower, spelling)
    assert layouts.recognise(source, "file") is public
    safetensors_io.write(tmp_path / "model.safetensors", source)
    (tmp_path / "config.json").write_text(json.dumps(golden.config[f"{tower}_config"]))
    network = networks.load(tmp_path)
    given = golden.arrays["in_ids"].astype(np.int32) if tower == "text" else golden.arrays["in_image"]
    found = jax.jit(network.module.apply)(network.variables, given)
    golden.check(f"out_{tower}_last", found["last"])
    assert ("projected" in found) == (spelling != "bare")
    back = networks.to_public(safetensors_io.flatten(network.variables), network.metadata, public, "file")
    assert set(back) == set(source)
    assert all(back[key].tobytes() == source[key].tobytes() for key in back)


def test_the_vision_tower_of_a_whole_file(golden, goldens):
    whole = golden(RESNET)
    network = networks.load(goldens / RESNET, layout="clip_openai_vision")
    assert type(network.module).__name__ == "ModifiedResNet" and "text" not in network.variables["params"]
    found = jax.jit(network.module.apply)(network.variables, whole.arrays["in_dense_image"])
    for name in ("stem", "res2", "res3", "res4", "res5"):
        whole.check(f"out_dense_{name}", found[name])
    hf = networks.load(goldens / HF[0], layout="clip_vision_hf")
    found = jax.jit(hf.module.apply)(hf.variables, golden(HF[0]).arrays["in_image"])
    golden(HF[0]).check("out_vision_last", found["last"])


def test_each_file_is_recognised_by_one_layout_alone(golden):
    expected = [CLIP_HF, CLIP_HF, CLIP_OPENAI, CLIP_OPENAI, CLIP_OPENAI]
    assert [golden(file).public for file in FILES] == expected  # layouts.recognise takes one or complains
    visual = {key: value for key, value in golden(CONVNEXT).source.items() if key.startswith("visual.")}
    assert layouts.recognise(visual, "file") is CLIP_OPENAI_VISION


def test_open_clips_text_prefix(golden):
    source, vit = golden(VIT).source, golden(VIT)
    custom = {key if key.startswith(("visual.", "logit_scale")) else f"text.{key}": value for key, value in source.items()}
    assert layouts.recognise(custom, "file") is CLIP_OPENAI
    flat = walk.to_segjax(custom, CLIP_OPENAI.layout(custom), vit.shapes(build.resolve(CLIP_OPENAI.model(custom, vit.config), "x")))
    plain = vit.convert(vit.net())
    assert all(np.array_equal(flat[path], plain[path]) for path in plain)


def test_without_a_config_the_rules_of_openai_hold(golden):
    source = golden(VIT).source
    spec = CLIP_OPENAI.model(source, {})
    assert (spec["vision_heads"], spec["text_heads"], spec["vision_activation"]) == (1, 1, "gelu")
    scalars = {name: np.int64(1) for name in SCALARS}
    assert CLIP_OPENAI.model({**source, **scalars}, {})["text_activation"] == "quick_gelu"
    assert CLIP_HF.model(golden(HF[0]).source, {})["text_eos_token_id"] == 2


def test_a_bare_file_of_openai(golden, tmp_path):
    torch, vit = pytest.importorskip("torch"), golden(VIT)
    content = {key: torch.from_numpy(np.array(value)).half() for key, value in vit.source.items()}
    content |= {name: torch.tensor(size) for name, size in zip(SCALARS, (48, 77, 664), strict=True)}
    torch.save(content, tmp_path / "ViT.pt")
    network = networks.load(tmp_path / "ViT.pt", settings={"vision_heads": 4, "text_heads": 4})
    configured = {key: value for key, value in vit.spec.items() if key not in ("mean", "std")}
    assert network.spec == configured | {"vision_activation": "quick_gelu", "text_activation": "quick_gelu"}
    back = networks.to_public(safetensors_io.flatten(network.variables), network.metadata, CLIP_OPENAI, "file")
    assert set(back) == set(content) and back["visual.proj"].dtype == np.float16
    assert all(value.tobytes() == content[key].numpy().tobytes() for key, value in back.items())


def test_the_torchscript_archive_of_openai(golden, tmp_path):
    torch, resnet = pytest.importorskip("torch"), golden(RESNET)

    class Part(torch.nn.Module):
        pass

    class Whole(torch.nn.Module):
        def forward(self, x):
            return x

    tree = Whole()
    for key, value in resnet.source.items():
        *path, last = key.split(".")
        place = tree
        for name in path:
            if not hasattr(place, name):
                place.add_module(name, Part())
            place = getattr(place, name)
        place.register_buffer(last, torch.from_numpy(np.array(value)))
    torch.jit.script(tree).save(tmp_path / "RN50.pt")
    network = networks.load(tmp_path / "RN50.pt")
    expected = resnet.convert(resnet.net())
    flat = safetensors_io.flatten(network.variables)
    assert network.spec == resnet.spec and set(flat) == set(expected)
    assert all(np.array_equal(flat[path], expected[path]) for path in expected)


def test_a_folder_of_open_clip_with_a_pickle(golden, tmp_path):
    torch, resnet = pytest.importorskip("torch"), golden(RESNET)
    content = {key: torch.from_numpy(np.array(value)) for key, value in resnet.source.items() if key not in SCALARS}
    torch.save(content, tmp_path / "open_clip_pytorch_model.bin")
    net = resnet.net()
    config = CLIP_OPENAI.config({**net.described(), "mean": (0.5, 0.5, 0.5), "std": net.std})
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    network = networks.load(tmp_path)
    assert network.module == net.clone(mean=(0.5, 0.5, 0.5))


def test_a_folder_with_both_kinds_of_config(golden, goldens, tmp_path):
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        (tmp_path / name).write_bytes((goldens / VIT / name).read_bytes())
    (tmp_path / "config.json").write_bytes((goldens / HF[0] / "config.json").read_bytes())
    assert networks.load(tmp_path).spec == golden(VIT).spec
    (tmp_path / "model.safetensors").write_bytes((goldens / HF[0] / "model.safetensors").read_bytes())
    assert networks.load(tmp_path).spec == golden(HF[0]).spec


def test_files_that_describe_no_clip_are_refused_in_a_line(golden, goldens, tmp_path):
    vit, hf = golden(VIT), golden(HF[0])
    less = lambda key: {name: value for name, value in vit.source.items() if name != key}
    with pytest.raises(WeightsError, match=r"no 'visual\.conv1\.weight'"):
        CLIP_OPENAI.model(less("visual.conv1.weight"), vit.config)
    with pytest.raises(WeightsError, match="5 position embeddings|6 position embeddings"):
        CLIP_OPENAI.model({**vit.source, "visual.positional_embedding": np.zeros((6, 48))}, vit.config)
    with pytest.raises(WeightsError, match="hf_model_name='roberta-base'"):
        config = json.loads(json.dumps(vit.config))
        config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
        CLIP_OPENAI.model(vit.source, config)
    with pytest.raises(WeightsError, match="7 attention heads do not divide the width 32"):
        CLIP_HF.model(hf.source, {**hf.config, "text_config": {**hf.config["text_config"], "num_attention_heads": 7}})
    with pytest.raises(WeightsError, match="activation 'swish'"):
        CLIP_HF.model(hf.source, {**hf.config, "vision_config": {"hidden_act": "swish"}})
    with pytest.raises(WeightsError, match="no ViT, ResNet or ConvNeXt"):
        CLIP_OPENAI_VISION.model({"visual.foo": np.zeros(1)}, {})
    with pytest.raises(WeightsError, match=r"layout clip_hf: no 'text_model"):
        networks.load(goldens / VIT, layout="clip_hf")
    with pytest.raises(WeightsError, match=r"unused source keys 1: visual\.extra"):
        safetensors_io.write(tmp_path / "open_clip_model.safetensors", {**vit.source, "visual.extra": np.zeros(2, np.float32)})
        networks.load(tmp_path, settings={"vision_heads": 4, "text_heads": 4})
    data = (goldens / RESNET).read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"cut\.pt.*not a complete torch checkpoint"):
        networks.load(tmp_path / "cut.pt")
