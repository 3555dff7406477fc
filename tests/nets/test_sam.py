"""SAM and MobileSAM on the originals' weights: outputs and middle features, batches of prompts and images, other sizes, bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden

from segjax.errors import ConfigError
from segjax.nets import sam_encoder
from segjax.nets.efficient_sam import EfficientSam
from segjax.nets.mobile_sam import MobileSam
from segjax.nets.sam import Sam, normalise
from segjax.ops import masks, prompts
from segjax.verbs import variables
from segjax.weights import safetensors_io

FILES = {"sam_original": "sam_original/sam_vit_tiny.pth", "sam_hf": "sam_hf", "mobile_sam": "mobile_sam/mobile_sam.pt"}
ORIGINAL = ("sam_original", "mobile_sam")


@functools.cache
def opened(goldens, name):
    """The golden, its arrays as they are stored, the network and its variables."""
    golden = Golden(goldens / FILES[name])
    folder = golden.path if golden.path.is_dir() else golden.path.parent
    told = {} if name == "sam_hf" else {"decoder_heads": 4, "image_size": 128}
    net = golden.net(**told)
    return golden, dict(np.load(folder / "golden.npz")), net, golden.variables(net)


@functools.partial(jax.jit, static_argnums=0)
def encode(net, variables, pixels):
    """The features of pixels that are normalised already, and what every module of the encoder gave."""
    call = lambda net, x: net.image_encoder(x)
    features, found = net.apply(variables, pixels, method=call, capture_intermediates=True, mutable=["intermediates"])
    return features, found["intermediates"]["image_encoder"]


@functools.cache
def encoded(goldens, name):
    """`encode` of the golden's own image."""
    golden, _, net, variables = opened(goldens, name)
    return jax.device_get(encode(net, variables, golden.arrays["in_pixels"]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode(net, multimask, variables, *arguments):
    return net.apply(variables, *arguments, method="decode", multimask=multimask)


@functools.partial(jax.jit, static_argnums=0)
def decode_both(net, variables, *arguments):
    """With several masks a prompt and with one, in one program."""
    return [net.apply(variables, *arguments, method="decode", multimask=multimask) for multimask in (True, False)]


def check(golden, name, got):
    """Against an array that is stored in NHWC or needs no turning."""
    raw = dict(np.load((golden.path if golden.path.is_dir() else golden.path.parent) / "golden.npz"))[name]
    got = np.asarray(got, np.float32).reshape(raw.shape)
    np.testing.assert_allclose(got, raw, rtol=0, atol=golden.facts[name]["atol"], err_msg=name)


def prompts_of(raw, slots=8):
    """The golden's eight prompts of three kinds in one shape, and where each kind lies."""
    kinds = {
        "points": prompts.pack(raw["in_points"], raw["in_point_labels"], slots=slots),
        "boxes": prompts.pack(boxes=raw["in_boxes"], slots=slots),
        "points_boxes": prompts.pack(raw["in_point_with_box"], raw["in_point_with_box_labels"], raw["in_boxes"], slots=slots),
    }
    where, start = {}, 0
    for kind, (_, labels) in kinds.items():
        where[kind] = slice(start, start + len(labels))
        start += len(labels)
    return *(np.concatenate([kind[i] for kind in kinds.values()])[None] for i in (0, 1)), where


@pytest.mark.parametrize("name", FILES)
def test_outputs_of_every_kind_of_prompt(goldens, name):
    golden, raw, net, variables = opened(goldens, name)
    features, _ = encoded(goldens, name)
    golden.check("out_image_embedding", features)
    points, labels, where = prompts_of(raw)
    both = jax.device_get(decode_both(net, variables, features[:1], points, labels))
    cases = {"multi": ("points", "points_boxes"), "single": ("points", "boxes")}
    for (how, kinds), (logits, iou) in zip(cases.items(), both, strict=True):
        for kind in kinds:
            tag = f"out_{kind}_{how}"
            check(golden, f"{tag}_lowres", logits[0, where[kind]])
            check(golden, f"{tag}_iou", iou[0, where[kind]])


@pytest.mark.parametrize("name", FILES)
def test_mask_prompts(goldens, name):
    golden, raw, net, variables = opened(goldens, name)
    features = raw["out_image_embedding"].transpose(0, 2, 3, 1)[:1]
    points, labels = prompts.pack(raw["in_points"], raw["in_point_labels"], slots=8)
    nothing = np.full_like(labels, prompts.PADDING)
    given = raw["in_mask_prompt"][:, 0]
    both = np.concatenate([points, points])[None], np.concatenate([labels, nothing])[None], np.concatenate([given, given])[None]
    logits, iou = jax.device_get(decode(net, True, variables, features, *both))
    cases = {"points_mask": slice(0, 2), "mask_only": slice(2, 4)} if name in ORIGINAL else {"mask": slice(0, 1)}
    for kind, where in cases.items():
        check(golden, f"out_{kind}_multi_lowres", logits[0, where])
        check(golden, f"out_{kind}_multi_iou", iou[0, where])


@pytest.mark.parametrize("name", ORIGINAL)
def test_tokens_and_positions(goldens, name):
    golden, raw, net, variables = opened(goldens, name)
    points, labels, where = prompts_of(raw)
    masks = raw["in_mask_prompt"][:, 0]
    masks = np.broadcast_to(masks[:1], (8, *masks.shape[1:]))[None]

    def run(net, masks):
        encode = lambda masks: net.prompt_encoder(points, labels, masks, (8, 8), (128, 128))
        return encode(None), encode(masks)[1]

    (tokens, _, positions), dense = jax.device_get(jax.jit(lambda v, x: net.apply(v, x, method=run))(variables, masks))
    golden.check("mid_dense_pe", positions[None])
    slots = {"points_multi": ("points", 4), "boxes_single": ("boxes", 2), "points_boxes_multi": ("points_boxes", 3)}
    for tag, (kind, count) in slots.items():
        check(golden, f"mid_{tag}_sparse", tokens[0, where[kind], :count])
    want = golden.arrays["mid_mask_dense"][0]
    np.testing.assert_allclose(dense[0, 5], want, rtol=0, atol=golden.facts["mid_mask_dense"]["atol"])


@pytest.mark.parametrize(("name", "middle"), [("sam_original", "blocks"), ("sam_hf", "layers")])
def test_blocks_of_the_vit(goldens, name, middle):
    golden, *_ = opened(goldens, name)
    _, found = encoded(goldens, name)
    first = next(part for _, part in sorted(found.items()) if isinstance(part, dict) and "windowed" in part)
    windowed = first["windowed"]["__call__"][0][0][0]  # [periods, run, ...]
    if name == "sam_original":  # windowed, global, windowed
        check(golden, "mid_blocks_0", windowed[0])
        check(golden, "mid_blocks_1", first["global"]["__call__"][0][0][0])
    else:  # windowed, windowed, global
        check(golden, "mid_layers_0", windowed[0])
        check(golden, "mid_layers_1", windowed[1])


def test_stages_of_the_tiny_vit(goldens):
    golden, *_ = opened(goldens, "mobile_sam")
    _, found = encoded(goldens, "mobile_sam")
    golden.check("mid_patch_embed", found["patch_embed_2"]["__call__"][0])
    check(golden, "mid_layers_0", found["layers_0"]["__call__"][0])
    check(golden, "mid_layers_1_blocks_0", found["layers_1"]["blocks"]["__call__"][0][0][0])


def test_a_photograph_from_pixels_to_a_mask_at_its_own_size(goldens):
    for name in ORIGINAL:
        golden, raw, net, variables = opened(goldens, name)
        size, inner = raw["in_photo_uint8"].shape[:2], tuple(raw["out_resized_shape"])
        assert masks.fitted(size, 128) == inner == (95, 128)
        frame = np.zeros((1, 128, 128, 3), np.float32)
        frame[0, : inner[0], : inner[1]] = raw["out_photo_resized_uint8"] / np.float32(255)
        frame[0, inner[0] :] = 0.7  # what stands outside the image must not count
        prepared = normalise(frame, np.array([inner]))
        if "out_photo_preprocessed" in raw:
            golden.check("out_photo_preprocessed", prepared)
        points = masks.to_frame(raw["in_photo_points_xy"], size, inner)[None]
        box = masks.to_frame(raw["in_photo_box"].reshape(2, 2), size, inner).reshape(1, 4)
        slots = prompts.pack(points, raw["in_photo_point_labels"][None], box, slots=8)
        slots = (np.repeat(slot[None], 8, 1) for slot in slots)  # the shape that other tests have compiled
        (logits, iou), _ = jax.device_get(decode_both(net, variables, encode(net, variables, prepared)[0], *slots))
        check(golden, "out_photo_lowres", logits[0, 0])
        check(golden, "out_photo_iou", iou[0, 0])
        matrices = masks.full_size_matrices((32, 32), (128, 128), inner, size)
        check(golden, "out_photo_mask_logits_fullres", masks.full_size(logits[0, 0], *matrices))


def test_huggingface_image_processor_and_postprocessing(goldens):
    golden, raw, _, _ = opened(goldens, "sam_hf")
    matrices = masks.full_size_matrices((32, 32), (128, 128), tuple(raw["out_resized_shape"]), (90, 121))
    check(golden, "out_photo_mask_logits_fullres", masks.full_size(raw["out_photo_lowres"][0, 0], *matrices))


def test_many_prompts_on_many_images_are_those_one_by_one(goldens):
    golden, raw, net, variables = opened(goldens, "sam_hf")
    features, _ = encoded(goldens, "sam_hf")
    points, labels, _ = prompts_of(raw)
    points, labels = np.concatenate([points, points[:, ::-1]]), np.concatenate([labels, labels[:, ::-1]])
    logits, iou = jax.device_get(decode(net, True, variables, features, points, labels))
    for image, prompt in ((0, 0), (1, 7)):
        used = labels[image, prompt] != prompts.PADDING  # and padded slots are as if they were not there
        assert used.sum() == 4
        alone = points[image, prompt, used][None, None], labels[image, prompt, used][None, None]
        one, quality = jax.device_get(decode(net, True, variables, features[image : image + 1], *alone))
        np.testing.assert_allclose(one[0, 0], logits[image, prompt], rtol=0, atol=3e-7)
        np.testing.assert_allclose(quality[0, 0], iou[image, prompt], rtol=0, atol=1e-6)
    assert np.abs(logits[0, 0] - logits[1, 7]).max() > 1e-3  # the same prompt on two images
    check(golden, "out_batch2_multi_lowres", np.stack([logits[0, 0], logits[1, 6]]))
    check(golden, "out_batch2_multi_iou", np.stack([iou[0, 0], iou[1, 6]]))


def test_bfloat16(goldens):
    golden, raw, net, variables = opened(goldens, "sam_hf")
    half = net.clone(dtype=jnp.bfloat16)
    features, _ = jax.device_get(encode(half, variables, golden.arrays["in_pixels"]))
    assert features.dtype == jnp.bfloat16
    golden.check_half("out_image_embedding", features)
    points, labels, where = prompts_of(raw)
    logits, iou = decode(half, True, variables, features[:1], points, labels)
    assert logits.dtype == iou.dtype == jnp.float32
    for tag, got in (("lowres", logits), ("iou", iou)):
        want = raw[f"out_points_multi_{tag}"].reshape(got[0, where["points"]].shape)
        assert np.abs(np.asarray(got)[0, where["points"]] - want).max() <= 3e-2 * np.abs(want).max()


def test_bfloat16_tiny_vit(goldens):
    golden, _, net, variables = opened(goldens, "mobile_sam")
    features, _ = encode(net.clone(dtype=jnp.bfloat16), variables, golden.arrays["in_pixels"])
    assert features.dtype == jnp.bfloat16
    golden.check_half("out_image_embedding", features)
    got, want = np.asarray(features, np.float32), golden.arrays["out_image_embedding"]
    assert 1e-3 < np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-2


def test_other_sizes_resize_the_positions(goldens):
    golden, raw, net, variables = opened(goldens, "sam_original")
    wide = np.tile(golden.arrays["in_pixels"], (1, 1, 2, 1))[:, :, :192]
    features, _ = encode(net, variables, wide)
    assert features.shape == (1, 8, 12, 32) and np.isfinite(features).all()
    slots = prompts.pack(np.full((1, 1, 1, 2), 150.0), np.ones((1, 1, 1)))
    logits, _ = jax.eval_shape(functools.partial(decode, net, True), variables, features, *slots)
    assert logits.shape == (1, 1, 3, 32, 48)
    with pytest.raises(ConfigError, match="multiples of the patch, 16"):
        encode(net, variables, wide[:, :, :190])


def test_stretches_cover_every_pattern_of_global_blocks():
    assert sam_encoder.stretches(12, (2, 5, 8, 11)) == [(0, 2, 4, True)]
    assert sam_encoder.stretches(24, (5, 11, 17, 23)) == [(0, 5, 4, True)]
    assert sam_encoder.stretches(32, (7, 15, 23, 31)) == [(0, 7, 4, True)]
    assert sam_encoder.stretches(3, (1,)) == [(0, 1, 1, True), (2, 1, 1, False)]
    assert sam_encoder.stretches(5, (0, 1, 4)) == [(0, 0, 2, True), (2, 2, 1, True)]
    assert sam_encoder.stretches(4, ()) == [(0, 4, 1, False)]


def test_a_decoder_whose_heads_nobody_told():
    net = Sam(image_size=32, embed_dim=8, depth=1, num_heads=1, mlp_dim=8, features=32, decoder_heads=0)
    with pytest.raises(ConfigError, match=r"decoder_heads=unknown.*--set decoder_heads=N"):
        variables.shapes(net)


VIT = {
    "b": dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, global_blocks=(2, 5, 8, 11)),
    "l": dict(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096, global_blocks=(5, 11, 17, 23)),
    "h": dict(embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120, global_blocks=(7, 15, 23, 31)),
}


def count(net, part=""):
    flat = safetensors_io.flatten(variables.shapes(net))
    return sum(int(np.prod(leaf.shape)) for path, leaf in flat.items() if path.startswith(f"params/{part}"))


COUNTS = {"b": (89_670_912, 93_735_472), "l": (308_278_272, 312_342_832), "h": (637_026_048, 641_090_608)}


@pytest.mark.parametrize("size", VIT)
def test_full_size_parameter_counts(size):
    net, (encoder, total) = Sam(**VIT[size]), COUNTS[size]
    assert count(net, "image_encoder") == encoder and count(net) == total
    assert count(net, "prompt_encoder") == 6_220 and count(net, "mask_decoder") == 4_058_340


def test_full_size_mobile_sam():
    net = MobileSam()
    assert count(net) == 5_071_124 + 672_768 + 6_220 + 4_058_340  # 9.81 M: trunk, neck, prompts, decoder


def test_full_size_efficient_sam():
    small = EfficientSam()
    flat = safetensors_io.flatten(variables.shapes(small))
    block = 2 * 2 * 192 + 192 * 576 + 576 + 192 * 192 + 192 + 192 * 768 + 768 + 768 * 192 + 192
    neck = 192 * 256 + 9 * 256 * 256 + 4 * 256
    assert count(small, "image_encoder") == 12 * block + 197 * 192 + (16 * 16 * 3 + 1) * 192 + neck
    assert count(small, "prompt_encoder") == 4 * 256
    assert flat["batch_stats/prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"].shape == (2, 128)
