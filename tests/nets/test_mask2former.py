"""Mask2Former against its public code's outputs, its masks and positions against closed forms, its other backbones, one gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden

from segjax.errors import ConfigError
from segjax.nets.mask2former import BACKBONES, mask2former
from segjax.nets.mask_decoder import MaskDecoder, visible
from segjax.nets.pixel_decoder import PixelDecoder, centres, ring
from segjax.nets.swin import Swin
from segjax.ops.mask_classification import semantic_map
from segjax.ops.positions import sine_positions
from segjax.ops.resize import bilinear
from segjax.verbs.variables import classifier_axes, shapes
from segjax.weights import safetensors_io

HEAD: dict = dict(channels=32, mask_channels=8, decoder_channels=8, heads=2, encoder_hidden=8, decoder_hidden=8, queries=3)
SMALL: dict = dict(num_classes=2, encoder_layers=1, decoder_layers=1, points=1, **HEAD)
TINY = {
    "swin": dict(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 2), window=3),
    "resnet": dict(depth=(1, 1, 1, 1), width=4),
    "mit": dict(dims=(4, 4, 8, 8), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)),
    "convnext": dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)),
    "clip_convnext": dict(embed_dim=6, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8), head_width=8),
    "clip_resnet": dict(embed_dim=6, layers=(1, 1, 1, 1), width=4, heads=2),
}


def tiny(backbone, **changes):
    return mask2former(backbone=backbone, **{f"backbone_{key}": value for key, value in TINY[backbone].items()}, **{**SMALL, **changes})


@pytest.fixture(scope="module")
def golden(goldens):
    return Golden(goldens / "mask2former_hf")


@pytest.fixture(scope="module")
def weights(golden):
    return golden.variables(golden.net(normalization="none"))


def test_outputs_and_features_equal_the_public_code(golden, weights):
    net = golden.net(normalization="none")
    parts = lambda module, name: name == "__call__" and isinstance(module, Swin | PixelDecoder)
    run = jax.jit(lambda v, x: net.apply(v, x, capture_intermediates=parts, mutable=["intermediates"]))
    outputs, seen = run(weights, golden.arrays["in_image"])
    maps, (features, deep) = (seen["intermediates"][part]["__call__"][0] for part in ("backbone", "pixel_decoder"))
    for n in range(4):
        golden.check(f"mid_backbone_{n + 1}", maps[f"res{n + 2}"])
    golden.check("mid_mask_features", features)
    for n in range(3):
        golden.check(f"mid_pixel_decoder_level{n}", deep[n])
    layers = seen["intermediates"]["pixel_decoder"]["layers"]["output"][0]
    golden.check("mid_pixel_level_module_decoder_encoder_layers_0", layers[0])
    golden.check("mid_transformer_module_decoder_layers_0", outputs["queries"][1].swapaxes(0, 1))
    for name in ("class_logits", "mask_logits"):
        golden.check(f"out_{name}", outputs[name])
        assert len(outputs["aux"][name]) == 3
        for n in range(3):
            golden.check(f"out_aux{n}_{name}", outputs["aux"][name][n])
    golden.check("out_semantic", outputs["logits"])


def test_half_precision_stays_close(golden, weights):
    net = golden.net(normalization="none", dtype=jnp.bfloat16)
    outputs = jax.jit(net.apply)(weights, golden.arrays["in_image"])
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
    for name in ("class_logits", "mask_logits"):
        golden.check_half(f"out_{name}", outputs[name])
    golden.check_half("out_semantic", outputs["logits"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_at_an_odd_size(backbone):
    net = tiny(backbone, decoder_layers=0)
    image = jax.ShapeDtypeStruct((2, 70, 101, 3), jnp.float32)
    found, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), image)
    assert found["class_logits"].shape == (2, 3, 3) and found["mask_logits"].shape == (2, 24, 32, 3)
    assert found["aux"]["mask_logits"].shape == (0, 2, 24, 32, 3) and found["logits"].shape == (2, 70, 101, 2)
    assert set(variables["params"]) == {"backbone", "pixel_decoder", "decoder"} and net.described()["backbone"] == backbone


@pytest.mark.parametrize("layers", [2, 7])
def test_any_number_of_layers(layers):
    net = MaskDecoder(num_classes=2, channels=8, queries=3, heads=2, layers=layers, hidden=8)
    maps = [jax.ShapeDtypeStruct((1, n, n, 8), jnp.float32) for n in (1, 2, 4)]
    features = jax.ShapeDtypeStruct((1, 8, 8, 6), jnp.float32)
    outputs, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), features, maps)
    assert {name for name in variables["params"] if name.startswith("layer")} == {f"layer{n}" for n in range(layers // 3 * 3, layers)}
    assert outputs["queries"].shape[0] == layers + 1 and outputs["aux"]["class_logits"].shape[0] == layers


def drawn(variables):
    """Values for every leaf: none is at the start where offsets and biases are zero."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: (rng.uniform(0.2, 1.0, leaf.shape) * rng.choice((-0.5, 0.5), leaf.shape)).astype(np.float32)
    ones = lambda leaf: np.ones(leaf.shape, np.float32)
    return {name: jax.tree.map(draw if name == "params" else ones, tree) for name, tree in variables.items()}


def test_gradients_reach_every_part_of_the_head():
    net = tiny("convnext", decoder_channels=HEAD["channels"])
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(1, size, size, width)).astype(np.float32) for size, width in ((8, 4), (4, 4), (3, 8), (2, 8))]
    assert classifier_axes(net) == {"params/decoder/class_embed/kernel": 1, "params/decoder/class_embed/bias": 0}  # a row for each class

    def loss(params, maps):
        outputs = net.apply({"params": params}, maps, method="predictions")
        whole = [outputs["class_logits"], outputs["mask_logits"], *jax.tree.leaves(outputs["aux"])]
        return sum(jnp.square(x - 1).mean() for x in whole)

    params = {name: tree for name, tree in drawn(shapes(net))["params"].items() if name != "backbone"}
    gradients, below = jax.device_get(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, maps))
    unused = {path for path, leaf in safetensors_io.flatten(gradients).items() if not np.any(leaf != 0)}
    assert all(path.endswith("k_proj/bias") for path in unused), unused  # a softmax does not see those
    assert all(np.any(x != 0) for x in below)


def test_a_frozen_backbone_runs_as_in_evaluation():
    net = tiny("clip_resnet", frozen=True)
    variables, image = drawn(shapes(net)), np.random.default_rng(2).uniform(size=(1, 64, 64, 3)).astype(np.float32)

    def loss(params):
        maps, changed = net.apply({**variables, "params": params}, image, True, method="features", mutable=["batch_stats"])
        return sum(jnp.square(x).mean() for x in maps), (maps[-1], changed["batch_stats"])

    gradients, (last, stats) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(variables["params"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients)) and np.any(last)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_where_a_query_may_look():
    features = jnp.asarray([[[1.0], [-1.0], [0.0]]])
    seen = visible(jnp.asarray([[[2.0], [-1.0], [0.0]]]), features)
    np.testing.assert_array_equal(seen, [[[True, False, True], [False, True, True], [True, True, True]]])
    np.testing.assert_array_equal(visible(jnp.asarray([[[2.0]]]), features - 2), [[[True, True, True]]])  # an empty mask


def test_the_semantic_map_is_made_in_blocks_of_rows():
    rng = np.random.default_rng(0)
    classes, masks = (rng.normal(size=size).astype(np.float32) for size in ((2, 5, 4), (2, 10, 6, 5)))

    @jax.jit
    def run(classes, masks):
        whole = jnp.einsum("bhwq,bqk->bhwk", jax.nn.sigmoid(bilinear(masks, (40, 24))), jax.nn.softmax(classes)[..., :-1])
        return whole, semantic_map(classes, masks, (40, 24)), semantic_map(classes, masks, (40, 24), (35, 23))

    whole, got, part = run(classes, masks)
    np.testing.assert_allclose(got, whole, atol=1e-5)
    np.testing.assert_allclose(part, whole[:, :35, :23], atol=1e-5)


def test_positions():
    got = np.asarray(jax.jit(sine_positions, static_argnums=(0, 1, 2))(2, 3, 8))
    row, column = 2 * np.pi * 2 / (2 + 1e-6), 2 * np.pi / (3 + 1e-6)
    want = [f(angle / scale) for angle in (row, column) for scale in (1, 100) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(got[1, 0], want, atol=1e-6)
    np.testing.assert_allclose(centres([(1, 2), (2, 1)]), [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]])
    first = ring(8, 3, 4).reshape(8, 3, 4, 2)
    np.testing.assert_allclose(first[:, 1, 2] / 3, [[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]], atol=1e-6)
    np.testing.assert_allclose(first[:, 2, 3], 4 * first[:, 0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vgg"}, "expected one of swin, resnet"),
        ({"channels": 40}, "a multiple of 32 channels"),
        ({"heads": 3}, "32 channels do not divide into 3 heads"),
        ({"decoder_channels": 7}, "expected an even multiple of the heads"),
        ({"backbone_num_heads": (1, 1, 1, 3)}, "expected one a stage"),
    ],
)
def test_impossible_settings_are_told(changes, message):
    own = {f"backbone_{key}": value for key, value in TINY["swin"].items()}
    with pytest.raises(ConfigError, match=message):
        shapes(mask2former(**{**SMALL, **own, **changes}))
