"""diffusers directories: read in every spelling, written so that diffusers takes them, refused in one line when something is wrong."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import pytest
import tiny_diffusion

from segjax.errors import WeightsError
from segjax.generation import directory
from segjax.nets.unet import UNet
from segjax.nets.vae import VAE
from segjax.verbs import variables
from segjax.weights import safetensors_io, walk
from segjax.weights.diffusers_unet import CONVOLUTIONS, UNET_DIFFUSERS
from segjax.weights.diffusers_vae import PROJECTIONS, VAE_DIFFUSERS

PUBLISHED, RESAVED = "stable_diffusion", "stable_diffusion_resaved"
SD1_UNET = {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64}
SD2_UNET = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96, "use_linear_projection": True}
FULL_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def tensors(folder):
    return {path.relative_to(folder).as_posix(): safetensors_io.read(path)[0] for path in folder.rglob("*.safetensors")}


@pytest.fixture
def copy(goldens, tmp_path):
    def make(name=PUBLISHED):
        shutil.copytree(goldens / name, tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", [PUBLISHED, RESAVED])
def test_written_as_it_was_read(goldens, tmp_path, name):
    directory.write(tmp_path / "out", directory.read(goldens / name))
    before, after = tensors(goldens / name), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for file, arrays in before.items():
        assert arrays.keys() == after[file].keys()
        assert all(value.dtype == after[file][key].dtype and value.tobytes() == after[file][key].tobytes() for key, value in arrays.items())
    for part in ("unet/config.json", "vae/config.json", "text_encoder/config.json", directory.SCHEDULER, directory.INDEX):
        assert json.loads((goldens / name / part).read_text()) == json.loads((tmp_path / "out" / part).read_text()), part
    files = lambda folder: sorted(path.name for path in (folder / "tokenizer").iterdir())
    assert files(goldens / name) == files(tmp_path / "out")


def test_types_and_variants(copy):
    """A float16 variant beside the plain file, and alone."""
    folder = copy()
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    arrays, _ = safetensors_io.read(plain)
    half = {key: value.astype(np.float16) for key, value in arrays.items()}
    safetensors_io.write(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", half)
    assert directory.read(folder).unet.types == {}
    with pytest.raises(WeightsError, match=r"text_encoder: holds .*expected variant 'fp16'"):
        directory.read(folder, variant="fp16")
    plain.unlink()
    model = directory.read(folder)
    assert set(model.unet.types.values()) == {"float16"}
    directory.write(folder.parent / "half", model)
    back = tensors(folder.parent / "half")["unet/diffusion_pytorch_model.safetensors"]
    assert all(value.dtype == np.float16 and np.array_equal(value, half[key]) for key, value in back.items())
    trained = dataclasses.replace(model, unet=dataclasses.replace(model.unet, types={}))
    directory.write(folder.parent / "full", trained)
    assert tensors(folder.parent / "full")["unet/diffusion_pytorch_model.safetensors"]["conv_in.bias"].dtype == np.float32
    assert model.sha256() != directory.read(folder.parent / "full").sha256()


def test_a_bin_of_torch(copy, goldens):
    torch = pytest.importorskip("torch")
    folder, plain = copy(), goldens / PUBLISHED / "unet" / "diffusion_pytorch_model.safetensors"
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{stem}.safetensors"
        arrays, _ = safetensors_io.read(file)
        name = "pytorch_model.bin" if part == "text_encoder" else f"{stem}.bin"
        torch.save({key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}, folder / part / name)
        file.unlink()
    read = directory.read(folder)
    np.testing.assert_array_equal(read.unet.variables["params"]["conv_in"]["bias"], safetensors_io.read(plain)[0]["conv_in.bias"])
    assert read.unet.file.name == "diffusion_pytorch_model.bin" and read.text.file.name == "pytorch_model.bin"


@pytest.mark.parametrize("name", [PUBLISHED, "tiny"])
def test_diffusers_loads_what_is_written_and_gives_the_same_outputs(goldens, tmp_path, name):
    """SD 1.x (quick GELU, 1x1 convolutions), and the tiny one in the manner of SD 2.x (linear projections, GELU)."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    folder = goldens / name if name != "tiny" else tiny_diffusion.write(tmp_path / "tiny", goldens)
    model = directory.read(folder)
    changed = jax.tree.map(lambda leaf: leaf * np.float32(1.01), model.unet.variables)
    model = dataclasses.replace(model, unet=dataclasses.replace(model.unet, variables=changed))
    directory.write(tmp_path / "out", model)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 600, (2, 77))
    latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    context = jax.jit(model.text.module.apply)(model.text.variables, ids)["last"]
    to_torch = lambda x: torch.from_numpy(np.array(x)).movedim(-1, 1)
    with torch.no_grad():
        theirs = pipeline.text_encoder(torch.from_numpy(ids))[0]
        noise = pipeline.unet(to_torch(latents), torch.tensor([10, 700]), theirs).sample.movedim(1, -1)
        image = pipeline.vae.decode(to_torch(latents)).sample.movedim(1, -1)
    close = lambda got, expected: np.testing.assert_allclose(
        got, expected.numpy(), rtol=0, atol=3e-5 * max(1.0, float(expected.abs().max()))
    )
    close(context, theirs)
    close(jax.jit(model.unet.module.apply)(changed, latents, np.array([10, 700]), context), noise)
    decode = jax.jit(lambda *a: model.vae.module.apply(*a, method="decode"))
    close(2 * decode(model.vae.variables, latents) - 1, image)
    assert "".join(pipeline.tokenizer.batch_decode(pipeline.tokenizer(["a road"]).input_ids)).count("road") == 1


@pytest.mark.parametrize("config", [SD1_UNET, SD2_UNET])
def test_the_full_size_unet_has_diffusers_own_keys_and_shapes(config):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**config).state_dict()
    layout = UNET_DIFFUSERS.layout({key: np.empty(value.shape, np.bool_) for key, value in theirs.items() if key.startswith("mid_block")})
    spec = UNET_DIFFUSERS.model({}, {"block_out_channels": [320, 640, 1280, 1280], **config})
    _same_keys(UNet, spec, layout, theirs)


def test_the_full_size_autoencoder_has_diffusers_own_keys_and_shapes():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**FULL_VAE).state_dict()
    spec = VAE_DIFFUSERS.model({key: np.broadcast_to(np.False_, value.shape) for key, value in theirs.items()}, FULL_VAE)
    _same_keys(VAE, spec, PROJECTIONS, theirs)


def _same_keys(make, spec, layout, theirs):
    flat = safetensors_io.flatten(variables.shapes(make(**{key: value for key, value in spec.items() if key != "make"})))
    ours = walk.to_source({path: np.broadcast_to(np.False_, leaf.shape) for path, leaf in flat.items()}, layout)
    assert {key: value.shape for key, value in ours.items()} == {key: tuple(value.shape) for key, value in theirs.items()}


def test_the_full_size_keys_follow_the_published_pattern():
    """Without diffusers: the counts and some of the names of runwayml/stable-diffusion-v1-5's unet."""
    flat = safetensors_io.flatten(variables.shapes(UNet()))
    assert sum(int(np.prod(leaf.shape)) for leaf in flat.values()) == 859_520_964
    keys = walk.to_source({path: np.broadcast_to(np.False_, leaf.shape) for path, leaf in flat.items()}, CONVOLUTIONS)
    assert len(keys) == 686
    assert keys["up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    assert keys["up_blocks.2.resnets.2.conv_shortcut.weight"].shape == (640, 960, 1, 1)
    assert keys["down_blocks.3.resnets.1.time_emb_proj.bias"].shape == (1280,)
    assert keys["mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"].shape == (10240, 1280)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "model_index.json").unlink(), "not a diffusers directory: model_index.json cannot be read"),
        (lambda d: (d / "model_index.json").write_text("[1]"), "holds list, expected an object"),
        (lambda d: (d / "scheduler" / "scheduler_config.json").write_text("{"), "no scheduler"),
        (lambda d: shutil.rmtree(d / "tokenizer"), "no folder tokenizer"),
        (lambda d: shutil.rmtree(d / "vae"), "vae: holds nothing, expected"),
        (lambda d: os.truncate(d / "vae" / "diffusion_pytorch_model.safetensors", 20_000), "not a complete safetensors file"),
        (lambda d: (d / "unet" / "config.json").unlink(), "needs the config.json of the UNet"),
        (lambda d: _edit(d / "unet" / "config.json", cross_attention_dim=32), "wrong shapes"),
        (lambda d: _edit(d / "unet" / "config.json", layers_per_block=2), "parameters without a source"),
        (lambda d: _edit(d / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]), "has a text_encoder_2"),
        (
            lambda d: (d / "vae" / "diffusion_pytorch_model.safetensors").rename(d / "vae" / "diffusion_flax_model.msgpack"),
            "it holds Flax weights, fetch the main revision",
        ),
    ],
)
def test_a_directory_that_is_not_right_is_refused(copy, damage, words):
    folder = copy()
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        directory.read(folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
