"""CLIP's tables against the complete key lists of the public models, from shapes alone; and transformers opens what segjax writes."""

import json

import jax
import numpy as np
import pytest
from open_clip_keys import FULL, Shapes

from segjax import cli
from segjax.errors import WeightsError
from segjax.verbs import build, networks, variables
from segjax.weights import layouts, safetensors_io, walk
from segjax.weights.clip_hf import CLIP_HF, CLIP_TEXT_HF
from segjax.weights.clip_openai import CLIP_OPENAI


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


@pytest.mark.parametrize("name", FULL)
def test_openai_and_open_clip(name):
    source = FULL[name]
    assert _written(CLIP_OPENAI, source, {}) == source
    counts = {"ViT-B-16": 149_620_737, "RN50": 102_007_137, "RN101": 119_688_033, "convnext_large_d_320": 351_772_609}
    learned = [int(np.prod(shape)) for key, shape in source.items() if "running" not in key and "num_batches" not in key]
    assert name not in counts or sum(learned) == counts[name]
    assert len(source) == {"ViT-B-16": 302, "convnext_large_d_320": 543}.get(name, len(source))


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
