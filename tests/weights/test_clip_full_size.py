"""CLIP's tables against the complete key lists of the public models, from shapes alone; and transformers opens what segjax writes."""

import json

import jax
import numpy as np
import pytest

from segjax import cli
from segjax.errors import WeightsError
from segjax.verbs import build, networks, variables
from segjax.weights import layouts, safetensors_io, walk
from segjax.weights.clip_hf import CLIP_HF, CLIP_TEXT_HF
from segjax.weights.clip_openai import CLIP_OPENAI

Shapes = dict[str, tuple[int, ...]]


def _written(public, source: Shapes, config) -> Shapes:
    """What the network that these shapes describe is written back as; no array is ever made."""
    stand_ins = {key: np.broadcast_to(np.zeros((), np.int8), shape) for key, shape in source.items()}
    assert layouts.recognise(stand_ins, "shapes") is public
    net = build.resolve(public.model(stand_ins, config), "shapes")
    back = {}
    for path, leaf in safetensors_io.flatten(variables.shapes(net)).items():
        arrays = walk.to_source({path: np.broadcast_to(np.zeros((), np.int8), leaf.shape)}, public.layout(stand_ins))
        back |= {key: array.shape for key, array in arrays.items()}
    return back


def _linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _affine(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _transformer(prefix: str, layers: int, width: int) -> Shapes:
    found: Shapes = {}
    for n in range(layers):
        at = f"{prefix}transformer.resblocks.{n}"
        found |= {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
        found |= _linear(f"{at}.attn.out_proj", width, width) | _affine(f"{at}.ln_1", width) | _affine(f"{at}.ln_2", width)
        found |= _linear(f"{at}.mlp.c_fc", 4 * width, width) | _linear(f"{at}.mlp.c_proj", width, 4 * width)
    return found


def _text(layers: int, width: int, embed_dim: int) -> Shapes:
    top = {"positional_embedding": (77, width), "text_projection": (width, embed_dim), "logit_scale": ()}
    return top | {"token_embedding.weight": (49408, width)} | _transformer("", layers, width) | _affine("ln_final", width)


def _vit(patch: int, size: int, layers: int, width: int, embed_dim: int) -> Shapes:
    found: Shapes = {"visual.conv1.weight": (width, 3, patch, patch), "visual.class_embedding": (width,), "visual.proj": (width, embed_dim)}
    found |= {"visual.positional_embedding": ((size // patch) ** 2 + 1, width)} | _transformer("visual.", layers, width)
    return found | _affine("visual.ln_pre", width) | _affine("visual.ln_post", width)


def _batch_norm(name: str, width: int) -> Shapes:
    return _affine(name, width) | {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}


def _resnet(layers: tuple[int, ...], width: int, embed_dim: int) -> Shapes:
    found: Shapes = {}
    for n, (into, out) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
        found |= {f"visual.conv{n}.weight": (out, into, 3, 3)} | _batch_norm(f"visual.bn{n}", out)
    into = width
    for stage, blocks in enumerate(layers, 1):
        middle = width * 2 ** (stage - 1)
        for block in range(blocks):
            at = f"visual.layer{stage}.{block}"
            for n, (i, o, k) in enumerate([(into, middle, 1), (middle, middle, 3), (middle, 4 * middle, 1)], 1):
                found |= {f"{at}.conv{n}.weight": (o, i, k, k)} | _batch_norm(f"{at}.bn{n}", o)
            if block == 0:
                found |= {f"{at}.downsample.0.weight": (4 * middle, into, 1, 1)} | _batch_norm(f"{at}.downsample.1", 4 * middle)
            into = 4 * middle
    for part in "qkv":
        found |= _linear(f"visual.attnpool.{part}_proj", into, into)
    return found | _linear("visual.attnpool.c_proj", embed_dim, into) | {"visual.attnpool.positional_embedding": (50, into)}


def _convnext(depths: tuple[int, ...], dims: tuple[int, ...], embed_dim: int, head: str = "mlp") -> Shapes:
    found: Shapes = {"visual.trunk.stem.0.weight": (dims[0], 3, 4, 4), "visual.trunk.stem.0.bias": (dims[0],)}
    found |= _affine("visual.trunk.stem.1", dims[0])
    for n, (depth, width) in enumerate(zip(depths, dims, strict=True)):
        at = f"visual.trunk.stages.{n}"
        if n:
            found |= _affine(f"{at}.downsample.0", dims[n - 1]) | {f"{at}.downsample.1.bias": (width,)}
            found |= {f"{at}.downsample.1.weight": (width, dims[n - 1], 2, 2)}
        for block in range(depth):
            here = f"{at}.blocks.{block}"
            found |= {f"{here}.conv_dw.weight": (width, 1, 7, 7), f"{here}.conv_dw.bias": (width,), f"{here}.gamma": (width,)}
            found |= _affine(f"{here}.norm", width) | _linear(f"{here}.mlp.fc1", 4 * width, width)
            found |= _linear(f"{here}.mlp.fc2", width, 4 * width)
    found |= _affine("visual.trunk.head.norm", dims[-1])
    if head == "linear":
        return found | _linear("visual.head.proj", embed_dim, dims[-1], bias=False)
    found |= _linear("visual.head.mlp.fc1", dims[-1], dims[-1])
    return found | _linear("visual.head.mlp.fc2", embed_dim, dims[-1], bias=False)


FULL = {
    "ViT-B-16": _vit(16, 224, 12, 768, 512) | _text(12, 512, 512),
    "ViT-L-14-336": _vit(14, 336, 24, 1024, 768) | _text(12, 768, 768),
    "RN50": _resnet((3, 4, 6, 3), 64, 1024) | _text(12, 512, 1024),
    "RN101": _resnet((3, 4, 23, 3), 64, 512) | _text(12, 512, 512),
    "convnext_large_d_320": _convnext((3, 3, 27, 3), (192, 384, 768, 1536), 768) | _text(16, 768, 768),
    "convnext_base_w": _convnext((3, 3, 27, 3), (128, 256, 512, 1024), 640, "linear") | _text(12, 640, 640),
}


@pytest.mark.parametrize("name", FULL)
def test_openai_and_open_clip(name):
    source = FULL[name]
    assert _written(CLIP_OPENAI, source, {}) == source
    counts = {"ViT-B-16": (302, 149_620_737), "convnext_large_d_320": (543, 351_772_609)}  # tensors, numbers
    if name in counts:
        assert (len(source), sum(int(np.prod(shape)) for shape in source.values())) == counts[name]


def _meta(make) -> Shapes:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in make().state_dict().items() if "position_ids" not in key}


def test_hugging_face_vit_b_16():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.CLIPConfig(text_config={"projection_dim": 512}, vision_config={"patch_size": 16})
    source = _meta(lambda: transformers.CLIPModel(config))
    assert len(source) == 398
    assert _written(CLIP_HF, source, config.to_dict()) == source
    assert _written(CLIP_HF, source, json.loads(config.to_json_string())) == source


def test_the_text_encoder_of_stable_diffusion():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    config = transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    source = _meta(lambda: transformers.CLIPTextModel(config))
    assert sum(int(np.prod(shape)) for shape in source.values()) == 123_060_480
    assert _written(CLIP_TEXT_HF, source, config.to_dict()) == source
    prefixed = {key if key.startswith("text_model.") else f"text_model.{key}": shape for key, shape in source.items()}
    assert _written(CLIP_TEXT_HF, prefixed, config.to_dict()) == prefixed


@pytest.mark.parametrize("name, to", [("clip_hf_gelu", "clip_hf"), ("openclip_vit", "clip_hf"), ("clip_hf_gelu", "clip_text_hf")])
def test_transformers_opens_what_is_written(goldens, tmp_path, name, to):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    single = ["--layout=clip_text_hf"] if to == "clip_text_hf" else []
    source = goldens / name
    if single:  # a text tower alone, as in a folder of Stable Diffusion
        arrays, _ = safetensors_io.read(source / "model.safetensors")
        place = tmp_path / "text"
        safetensors_io.write(place / "model.safetensors", {key: x for key, x in arrays.items() if key.startswith("text_")})
        (place / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text())["text_config"]))
        source = place
    assert cli.main(["convert", f"--input={source}", f"--output={tmp_path / 'ours.safetensors'}"]) == 0
    assert cli.main(["convert", f"--input={tmp_path / 'ours.safetensors'}", f"--to={to}", f"--output={tmp_path / 'hf'}/"]) == 0
    stored = np.load(goldens / name / "golden.npz")
    ids = torch.from_numpy(stored["in_ids"])
    if single:
        net, report = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "hf", output_loading_info=True)
        got, expected = net(ids).last_hidden_state, stored["out_text_last"]
    else:
        net, report = transformers.CLIPModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
        got = net(input_ids=ids, pixel_values=torch.from_numpy(stored["in_image"])).logits_per_image
        expected = stored["out_logits_per_image"]
    assert not any(report.values()), report
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=1e-4)


def test_positions_at_other_sizes_are_transformers(goldens):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    net = transformers.CLIPVisionModel.from_pretrained(goldens / "clip_hf_quickgelu").eval()
    image = np.random.default_rng(0).normal(size=(1, 3, 80, 64)).astype(np.float32)
    with torch.no_grad():
        there = net(torch.from_numpy(image), interpolate_pos_encoding=True)
    ours = networks.load(goldens / "clip_hf_quickgelu", layout="clip_vision_hf")
    found = jax.jit(ours.module.apply)(ours.variables, image.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(found["last"], there.last_hidden_state.numpy(), atol=2e-5)
    np.testing.assert_allclose(found["pooled"], there.pooler_output.numpy(), atol=2e-5)


@pytest.mark.parametrize("name", ["openclip_vit", "openclip_rn/RN50.pt", "clip_hf_quickgelu"])
def test_a_folder_of_open_clip_describes_the_same_network(goldens, tmp_path, name):
    ours, place = tmp_path / "ours.safetensors", tmp_path / "open_clip"
    assert cli.main(["convert", f"--input={goldens / name}", f"--output={ours}"]) == 0
    assert cli.main(["convert", f"--input={ours}", "--to=clip_openai", f"--output={place}/"]) == 0
    assert {file.name for file in place.iterdir()} == {"open_clip_model.safetensors", "open_clip_config.json", "source.json"}
    before, after = networks.load(goldens / name), networks.load(place)
    assert after.module == before.module
    flat = safetensors_io.flatten(after.variables)
    assert all(np.array_equal(flat[path], x) for path, x in safetensors_io.flatten(before.variables).items())


def test_open_clip_s_names_of_convnexts():
    stand_ins = {key: np.broadcast_to(np.zeros((), np.int8), shape) for key, shape in FULL["convnext_large_d_320"].items()}
    net = build.resolve(CLIP_OPENAI.model(stand_ins, {}), "shapes")
    config = CLIP_OPENAI.config({**net.described(), "mean": net.mean, "std": net.std})
    vision = config["model_cfg"]["vision_cfg"]
    assert (vision["timm_model_name"], vision["timm_proj"], config["model_cfg"]["quick_gelu"]) == ("convnext_large", "mlp", False)
    assert build.resolve(CLIP_OPENAI.model(stand_ins, config), "shapes") == net


def test_towers_that_transformers_does_not_have_are_refused(goldens, tmp_path, capsys):
    assert cli.main(["convert", f"--input={goldens / 'openclip_convnext'}", f"--output={tmp_path / 'a.safetensors'}"]) == 0
    assert cli.main(["convert", f"--input={tmp_path / 'a.safetensors'}", "--to=clip_hf", f"--output={tmp_path / 'hf'}/"]) == 4
    assert "does not fit the network under layout clip_hf: parameters without a source" in capsys.readouterr().err
    assert cli.main(["convert", f"--input={tmp_path / 'a.safetensors'}", "--to=clip_openai", f"--output={tmp_path / 'oc'}/"]) == 4
    assert "timm has no name for it" in capsys.readouterr().err
    net = networks.load(goldens / "openclip_rn" / "RN50.pt").module
    with pytest.raises(WeightsError, match="transformers has only the vision transformer"):
        CLIP_HF.config(net.described())
    with pytest.raises(WeightsError, match="open_clip has one for both"):
        CLIP_OPENAI.config({**net.described(), "vision_activation": "gelu"})
