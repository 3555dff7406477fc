"""The tables of SAM, SamModel, MobileSAM and EfficientSAM: strict, both ways, to the byte; full-size names; transformers loads it."""

import numpy as np
import pytest
from golden import Golden

from segjax import cli
from segjax.errors import WeightsError
from segjax.verbs import build, networks, variables
from segjax.weights import layouts, safetensors_io, sources, walk
from segjax.weights.efficient_sam import EFFICIENT_SAM
from segjax.weights.mobile_sam import MOBILE_SAM
from segjax.weights.sam import SAM, SAM_HF

FILES = {"sam_original/sam_vit_tiny.pth": SAM, "sam_hf": SAM_HF, "mobile_sam/mobile_sam.pt": MOBILE_SAM}
TOLD = {"decoder_heads": 4}


class Told(Golden):
    """The golden, told the head count that its file does not tell."""

    def net(self, **changes):
        return super().net(**({} if self.path.is_dir() else TOLD), **changes)


@pytest.mark.parametrize("file", FILES)
def test_there_and_back_is_bit_equal(goldens, file):
    golden = Told(goldens / file)
    assert golden.public is FILES[file]
    golden.check_the_way_back((r".*\.num_batches_tracked", r"image_encoder\.(norm_head|head)\.(weight|bias)"))


def test_sizes_are_read_from_the_shapes(goldens):
    spec = Golden(goldens / "sam_original/sam_vit_tiny.pth").spec
    want = {"image_size": 128, "embed_dim": 48, "depth": 3, "num_heads": 3, "global_blocks": (1,), "window": 3, "decoder_heads": 0}
    assert want.items() <= spec.items()
    hf = Golden(goldens / "sam_hf").spec
    want = {"num_heads": 4, "global_blocks": (2,), "window": 3, "decoder_heads": 4, "decoder_epsilon": 1e-6, "mask_channels": 8}
    assert want.items() <= hf.items()
    mobile = Golden(goldens / "mobile_sam/mobile_sam.pt").spec
    want = {"embed_dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1), "window_sizes": (7, 7, 5, 7)}
    assert want.items() <= mobile.items() and mobile["heads"][1:] == (3, 4, 6)


def test_the_tied_matrix_under_one_name_or_both(goldens):
    golden = Golden(goldens / "sam_hf")
    shared, own = "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"
    net = golden.net()
    for names in ({shared}, {own}, {shared, own}):
        source = {key: value for key, value in golden.source.items() if key != shared} | {key: golden.source[shared] for key in names}
        flat = walk.to_segjax(source, SAM_HF.layout(source), golden.shapes(net))
        form = next(form for form in SAM_HF.forms if form.name == SAM_HF.layout(source).name)
        assert set(walk.to_source(flat, form)) == set(source)
    source[own] = source[own] + 1
    with pytest.raises(WeightsError, match=f"{own} differs from {shared}"):
        walk.to_segjax(source, SAM_HF.layout(source), golden.shapes(net))


def test_convert_and_open_again(goldens, tmp_path):
    """Through the verb: a public folder to a segjax file, the file opened, and a folder that transformers loads."""
    first, back = tmp_path / "sam.safetensors", tmp_path / "hf"
    assert cli.main(["convert", f"--input={goldens / 'sam_hf'}", f"--output={first}"]) == 0
    network = networks.load(first)
    assert network.module.global_blocks == (2,) and network.module.decoder_heads == 4
    assert cli.main(["convert", f"--input={first}", "--to=sam_hf", f"--output={back}/"]) == 0
    was, now = safetensors_io.read(goldens / "sam_hf/model.safetensors")[0], safetensors_io.read(back / "model.safetensors")[0]
    assert set(was) == set(now) and all(was[key].tobytes() == now[key].tobytes() for key in was)
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model, about = transformers.SamModel.from_pretrained(back, output_loading_info=True)
    assert not about["missing_keys"] and not about["unexpected_keys"] and not about["mismatched_keys"]
    raw = np.load(goldens / "sam_hf/golden.npz")
    with torch.no_grad():
        points = torch.from_numpy(raw["in_points"])[:, None], torch.from_numpy(raw["in_point_labels"])[:, None]
        out = model.eval()(pixel_values=torch.from_numpy(raw["in_pixels"]), input_points=points[0], input_labels=points[1])
    np.testing.assert_allclose(out.pred_masks.numpy(), raw["out_batch2_multi_lowres"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(out.iou_scores.numpy(), raw["out_batch2_multi_iou"], rtol=0, atol=2e-5)


class Shape:
    """A tensor of which only the shape is known."""

    def __init__(self, shape):
        self.shape, self.ndim = tuple(shape), len(shape)


def fits(public, source, config=None, **told):
    """Whether a full-size key list (key -> Shape) is used and set completely, by shapes alone."""
    assert [known.name for known in layouts.known().values() if known.recognises(source)] == [public.name]
    module = build.resolve({**public.model(source, config or {}), **told}, public.name)
    form = public.layout(source)
    like = safetensors_io.flatten(variables.shapes(module))
    light = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in like.items()}
    back = {key: value.shape for key, value in walk.to_source(light, form).items()}
    return back, {key: value.shape for key, value in source.items()}


@pytest.mark.parametrize("size", ["base", "huge"])
def test_full_size_names_of_transformers(size):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    vision = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120} if size == "huge" else {}
    blocks = {"huge": [7, 15, 23, 31], "base": [2, 5, 8, 11]}[size]
    config = transformers.SamConfig(vision_config={**vision, "global_attn_indexes": blocks})
    with torch.device("meta"):
        model = transformers.SamModel(config)
    source = {key: Shape(value.shape) for key, value in model.state_dict().items()}
    got, want = fits(SAM_HF, source, config.to_dict())
    assert got == want


def decoder_names(mlp, heads, upscale):
    """Names of the mask decoder at full size, as its public code declares them."""
    names = {"mask_decoder.iou_token.weight": (1, 256), "mask_decoder.mask_tokens.weight": (4, 256)}
    linear = lambda key, o, i: {f"{key}.weight": (o, i), f"{key}.bias": (o,)}
    norm = lambda key, c: {f"{key}.weight": (c,), f"{key}.bias": (c,)}
    at = "mask_decoder.transformer"
    attentions = [(f"{at}.final_attn_token_to_image", 128)]
    for n in range(2):
        attentions += [(f"{at}.layers.{n}.{kind}", width) for kind, width in
                       (("self_attn", 256), ("cross_attn_token_to_image", 128), ("cross_attn_image_to_token", 128))]  # fmt: skip
        for k in range(1, 5):
            names |= norm(f"{at}.layers.{n}.norm{k}", 256)
        names |= linear(f"{at}.layers.{n}.mlp.{mlp[0]}", 2048, 256) | linear(f"{at}.layers.{n}.mlp.{mlp[1]}", 256, 2048)
    for key, width in attentions:
        for part in "qkv":
            names |= linear(f"{key}.{part}_proj", width, 256)
        names |= linear(f"{key}.out_proj", 256, width)
    names |= norm(f"{at}.norm_final_attn", 256)
    for head, last in [(f"output_hypernetworks_mlps.{n}", 32) for n in range(4)] + [("iou_prediction_head", 4)]:
        for layer, width in zip(heads, (256, 256, last), strict=True):
            names |= linear(f"mask_decoder.{head}.{layer}", width, 256)
    names |= {f"mask_decoder.{upscale[0]}.weight": (256, 64, 2, 2), f"mask_decoder.{upscale[0]}.bias": (64,)}
    names |= {f"mask_decoder.{upscale[2]}.weight": (64, 32, 2, 2), f"mask_decoder.{upscale[2]}.bias": (32,)}
    return names | norm(f"mask_decoder.{upscale[1]}", 64)


def test_full_size_names_of_efficient_sam():
    """No golden exists: the names and shapes are written down from the public code (build_efficient_sam.py, -Ti)."""
    linear = lambda key, o, i: {f"{key}.weight": (o, i), f"{key}.bias": (o,)}
    names = {"image_encoder.pos_embed": (1, 197, 192), "image_encoder.patch_embed.proj.weight": (192, 3, 16, 16)}
    names |= {"image_encoder.patch_embed.proj.bias": (192,), "image_encoder.neck.0.weight": (256, 192, 1, 1)}
    names |= {"image_encoder.neck.2.weight": (256, 256, 3, 3)}
    names |= {f"image_encoder.neck.{n}.{kind}": (256,) for n in (1, 3) for kind in ("weight", "bias")}
    for n in range(12):
        at = f"image_encoder.blocks.{n}"
        names |= {f"{at}.norm{k}.{kind}": (192,) for k in (1, 2) for kind in ("weight", "bias")}
        names |= linear(f"{at}.attn.qkv", 576, 192) | linear(f"{at}.attn.proj", 192, 192)
        names |= linear(f"{at}.mlp.fc1", 768, 192) | linear(f"{at}.mlp.fc2", 192, 768)
    names["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, 128)
    for kind in ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings"):
        names[f"prompt_encoder.{kind}.weight"] = (1, 256)
    upscale = tuple(f"final_output_upscaling_layers.{n}" for n in ("0.0", "0.1", "1.0"))
    names |= decoder_names(("layers.0.0", "fc"), ("layers.0.0", "layers.1.0", "fc"), upscale)
    got, want = fits(EFFICIENT_SAM, {key: Shape(shape) for key, shape in names.items()})
    assert got == want


def test_misfits_are_refused_with_one_line(goldens, tmp_path):
    golden = Told(goldens / "sam_original/sam_vit_tiny.pth")
    with pytest.raises(WeightsError, match=r"unused source keys 14: image_encoder\.blocks\.2\..*"):
        walk.to_segjax(golden.source, SAM.layout(()), golden.shapes(golden.net(depth=2)))
    with pytest.raises(WeightsError, match="wrong shapes .*does not fit"):
        walk.to_segjax(golden.source, SAM.layout(()), golden.shapes(golden.net(mlp_dim=64)))
    short = {key: value for key, value in golden.source.items() if "mask_tokens" not in key}
    with pytest.raises(WeightsError, match="mask_decoder.mask_tokens.weight"):
        SAM.model(short, {})
    hf = Golden(goldens / "sam_hf")
    for part, change, message in (
        ("vision", {"num_attention_heads": 5}, "num_heads = 5"),
        ("mask_decoder", {"hidden_act": "gelu"}, "activations"),
    ):
        with pytest.raises(WeightsError, match=message):
            SAM_HF.model(hf.source, {f"{part}_config": change})
    cut = tmp_path / "cut.pth"
    cut.write_bytes((goldens / "sam_original/sam_vit_tiny.pth").read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="not a complete torch checkpoint"):
        sources.read(cut)
