"""CLIP's towers by closed forms: full-size counts, other image sizes, dense features, training behaviour, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nets.clip import CLIP, ConvNeXtTower, ModifiedResNet, TextTransformer, VisionTransformer, clip, normalized
from segjax.nets.convnext import ConvNeXt
from segjax.nets.layers import quick_gelu
from segjax.ops.resize import bilinear

TEXT_B = {"text_width": 512, "text_heads": 8, "text_layers": 12, "text_mlp_width": 2048}
FULL = {  # RN101 and convnext_large_d_320: tests/weights/test_clip_full_size.py
    "ViT-B-16": (clip(vision="vit", embed_dim=512, **TEXT_B), 149_620_737),
    "RN50": (clip(vision="resnet", embed_dim=1024, **TEXT_B), 102_007_137),
    "SD1 text": (TextTransformer(width=768, heads=12, mlp_width=3072), 123_060_480),
    "SD2 text": (TextTransformer(width=1024, layers=23, heads=16, mlp_width=4096, activation="gelu"), 340_387_840),
    "ConvNeXt-L trunk": (ConvNeXt(), 196_227_264),
}
TINY_VIT = VisionTransformer(embed_dim=6, image_size=32, patch_size=8, width=16, layers=3, heads=2, mlp_width=24)
TINY_RESNET = ModifiedResNet(embed_dim=6, image_size=16, layers=(1, 2), width=4, heads=2)
TINY_CONVNEXT = ConvNeXtTower(embed_dim=6, depths=(1, 2), dims=(4, 6), head_width=10, drop_path=0.9)


@functools.cache
def spec(model):
    arguments = model.example() if hasattr(model, "example") else (jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),)
    return jax.eval_shape(model.init, jax.random.key(0), *arguments)


@pytest.mark.parametrize("name", FULL)
def test_parameter_counts_of_the_public_models(name):
    model, count = FULL[name]
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(spec(model)["params"])) == count


def drawn(model):
    """Random variables of the right shapes, nothing at its default; variances positive."""
    rng = np.random.default_rng(0)
    leaf = lambda path, x: np.abs(rng.normal(0.5, 0.2, x.shape)) if path[-1].key in ("var", "scale") else rng.normal(0, 0.3, x.shape)
    return jax.tree_util.tree_map_with_path(lambda path, x: np.asarray(leaf(path, x), np.float32), spec(model))


def _image(*shape):
    return np.random.default_rng(1).normal(size=(2, *shape, 3)).astype(np.float32)


def test_a_vit_s_dense_features_are_its_last_values():
    variables, image = drawn(TINY_VIT), _image(40, 24)
    usual = jax.device_get(jax.jit(lambda v: TINY_VIT.apply(v, image, at=(0, 2, 3)))(variables))
    dense = jax.device_get(jax.jit(lambda v: TINY_VIT.apply(v, image, at=(2,), dense=True))(variables))
    assert usual["block2"].shape == (2, 5, 3, 16) and "dense" not in usual and dense["dense"].shape == (2, 5, 3, 6)
    for name in ("pooled", "projected", "block2"):
        np.testing.assert_allclose(dense[name], usual[name], atol=1e-5)
    np.testing.assert_array_equal(usual["block3"].reshape(2, 15, 16), usual["last"][:, 1:])
    last = jax.tree.map(lambda x: x[-1], variables["params"]["resblocks"])

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    x = usual["block2"]
    x = x + linear(linear(norm(x, last["ln_1"]), last["in_proj"])[..., 32:], last["out_proj"])
    x = x + linear(np.asarray(quick_gelu(linear(norm(x, last["ln_2"]), last["c_fc"]))), last["c_proj"])
    expected = norm(x, variables["params"]["ln_post"]) @ variables["params"]["proj"]["kernel"]
    np.testing.assert_allclose(dense["dense"], expected, atol=2e-4)


def test_a_resnet_s_attention_pool_at_any_size():
    variables, image = drawn(TINY_RESNET), _image(24, 16)
    found = jax.device_get(jax.jit(lambda v: TINY_RESNET.apply(v, image, dense=True))(variables))
    shapes = {name: found[name].shape[1:] for name in ("stem", "res2", "res3", "dense")}
    assert shapes == {"stem": (6, 4, 4), "res2": (6, 4, 16), "res3": (3, 2, 32), "dense": (3, 2, 6)}
    pool = variables["params"]["attnpool"]
    linear = lambda x, name: x @ pool[name]["kernel"] + pool[name]["bias"]
    np.testing.assert_allclose(found["dense"], linear(linear(found["res3"], "v_proj"), "c_proj"), rtol=2e-4, atol=1e-4)
    positions = pool["positional_embedding"]
    grid = np.asarray(jax.jit(bilinear, static_argnums=1)(positions[1:].reshape(1, 2, 2, 32), (3, 2))).reshape(6, 32)
    tokens = found["res3"].reshape(2, 6, 32)
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + np.concatenate([positions[:1], grid])
    query, key, value = (linear(tokens, f"{part}_proj").reshape(2, 7, 2, 16) for part in "qkv")
    weight = np.exp(np.einsum("bhd,bmhd->bhm", query[:, 0], key) / 4)
    weight = weight / weight.sum(-1, keepdims=True)
    pooled = linear(np.einsum("bhm,bmhd->bhd", weight, value).reshape(2, 32), "c_proj")
    np.testing.assert_allclose(found["projected"], pooled, rtol=2e-4, atol=1e-4)


def test_a_convnext_of_one_location_is_dense_alike():
    variables, image = drawn(TINY_CONVNEXT), _image(8, 8)
    found = jax.jit(lambda v: TINY_CONVNEXT.apply(v, image, dense=True))(variables)
    np.testing.assert_allclose(found["dense"][:, 0, 0], found["projected"], atol=1e-5)
    linear = TINY_CONVNEXT.clone(head="linear")
    shapes = jax.eval_shape(linear.apply, spec(linear), image)
    assert "head_proj" in spec(linear)["params"] and shapes["projected"].shape == (2, 6) and "dense" not in shapes


def test_drop_path_and_batch_statistics_act_in_training_alone():
    variables, image = drawn(TINY_CONVNEXT), _image(8, 8)

    @jax.jit
    def run(variables, key):
        net = lambda **how: TINY_CONVNEXT.apply(variables, image, **how)["projected"]
        return net(), net(train=True), net(train=True, rngs={"dropout": key})

    (usual, without_key, first), (*_, second), (*_, again) = (jax.device_get(run(variables, jax.random.key(seed))) for seed in (0, 1, 0))
    np.testing.assert_array_equal(usual, without_key)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - usual).max() > 1e-3
    changed = jax.eval_shape(lambda v: TINY_RESNET.apply(v, _image(16, 16), train=True, mutable=["batch_stats"])[1], spec(TINY_RESNET))
    assert set(changed["batch_stats"]) == set(spec(TINY_RESNET)["batch_stats"])


def test_gradients_are_finite_through_both_towers():
    model = clip(
        vision="vit",
        embed_dim=6,
        **{f"vision_{name}": getattr(TINY_VIT, name) for name in ("image_size", "patch_size", "width", "layers", "heads", "mlp_width")},
        text_vocab_size=20,
        text_context_length=8,
        text_width=16,
        text_layers=2,
        text_heads=2,
        text_mlp_width=24,
        text_eos_token_id=19,
    )
    ids = np.array([[18, 3, 19, 0, 0, 0, 0, 0], [18, 4, 5, 6, 19, 19, 19, 19]])
    variables = drawn(model)

    def loss(params):
        logits = model.apply({"params": params}, _image(32, 32), ids)["logits_per_image"]
        return -jnp.trace(jax.nn.log_softmax(logits))

    gradient = jax.device_get(jax.jit(jax.grad(loss))(variables["params"]))
    assert isinstance(model, CLIP) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    moved = [np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]
    assert min(moved) > 0


def test_the_end_token_by_its_id_or_as_the_largest():
    ids = np.array([[5, 1, 7, 9, 7], [5, 7, 1, 1, 1]])
    text = TextTransformer(vocab_size=10, context_length=6, width=8, layers=1, heads=2, mlp_width=8, eos_token_id=7)
    variables = drawn(text)
    nets = text, text.clone(eos_token_id=2)
    by_id, largest = jax.device_get(jax.jit(lambda v: [net.apply(v, ids) for net in nets])(variables))
    np.testing.assert_array_equal(by_id["pooled"], by_id["last"][np.arange(2), [2, 1]])
    np.testing.assert_array_equal(largest["pooled"], largest["last"][np.arange(2), [3, 1]])
    assert "projected" not in by_id and "hidden" not in by_id
    with pytest.raises(ValueError, match="longer than the context of 6"):
        jax.eval_shape(text.apply, variables, np.zeros((1, 7), np.int32))


def test_mistaken_settings_and_lengths():
    with pytest.raises(ValueError, match="vision='swin'"):
        clip(vision="swin", embed_dim=4)
    with pytest.raises(ValueError, match="depth: expected fields of the towers"):
        clip(vision="vit", embed_dim=4, depth=3)
    assert clip(vision="resnet", embed_dim=4, vision_layers=[1, 1, 1, 1], mean=[0, 0, 0]).visual.layers == (1, 1, 1, 1)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    np.testing.assert_allclose(np.linalg.norm(normalized(x), axis=-1), 1, rtol=1e-5)
