"""Mask2Former with CLOUDS' other classifiers and the ensemble with its frozen CLIP: shapes, gradients, and a CLIP's heads by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.nets.clip_resnet import ModifiedResNet, masked_attention_pool
from segjax.nets.convnext import ConvNeXtTower, masked_head
from segjax.nets.mask2former import mask2former, with_words

SMALL: dict = dict(channels=32, mask_channels=8, decoder_channels=8, heads=2, encoder_hidden=8, decoder_hidden=8, queries=3, num_classes=2)
SMALL |= dict(encoder_layers=1, decoder_layers=1, frozen=True, normalization="clip")
CONVNEXT = dict(
    backbone="clip_convnext", backbone_embed_dim=6, backbone_depths=(1, 1, 1, 1), backbone_dims=(4, 4, 8, 8), backbone_head_width=8
)
RESNET = dict(backbone="clip_resnet", backbone_embed_dim=6, backbone_layers=(1, 1, 1, 1), backbone_width=4, backbone_heads=2)
TEXT = dict(class_head="text", synonyms=(1, 2), embed_dim=6)
WORDS = np.random.default_rng(0).normal(size=(3, 6))


def drawn(net, rng):
    """Values for every leaf, and the words."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    draw = lambda path, leaf: 0.5 + rng.random(leaf.shape) if "var" in str(path[-1]) else rng.normal(size=leaf.shape) * 0.3
    return with_words(jax.tree_util.tree_map_with_path(lambda *x: np.asarray(draw(*x), np.float32), shapes), WORDS)


def test_answers_of_both_vocabularies():
    net = mask2former(**SMALL, **RESNET, **TEXT, ensemble=True, ensemble_on_valid_mask=True, seen=(True, False))
    image = np.random.default_rng(1).random((1, 64, 70, 3), np.float32)

    def both(net, image):
        maps = net.features(image)
        return net.predictions(maps), net.answer(maps, (64, 70))

    run = jax.jit(lambda variables: net.apply(variables, image, method=both))
    alone, joined = jax.device_get(run(drawn(net, np.random.default_rng(0))))
    assert joined["logits"].shape == (1, 64, 70, 2) and joined["aux"]["class_logits"].shape == (1, 1, 3, 3)
    np.testing.assert_allclose(np.exp(joined["class_logits"]).sum(-1), 1, atol=1e-5)
    for name in ("aux", "mask_logits"):  # the ensemble is of the answers alone
        jax.tree.map(np.testing.assert_array_equal, joined[name], alone[name])
    weights = [np.exp(found["class_logits"]) for found in (joined, alone)]
    shares = [weight / weight.sum(-1, keepdims=True) for weight in weights]
    np.testing.assert_allclose(*(share[..., -1] for share in shares), atol=1e-5)  # and leaves void its share
    assert (alone["mask_logits"] > 0).any() and np.abs(shares[0] - shares[1]).max() > 1e-3


def test_gradients_reach_the_classifier_and_not_the_words():
    rng = np.random.default_rng(2)
    maps = [rng.normal(size=(1, size, size, width)).astype(np.float32) for size, width in ((8, 4), (4, 4), (2, 8), (1, 8))]
    net = mask2former(**(SMALL | dict(decoder_layers=0)), **CONVNEXT, **TEXT)
    loss = lambda variables: jnp.square(net.apply(variables, maps, method="predictions")["class_logits"] - 1).mean()
    slopes = jax.device_get(jax.jit(jax.grad(loss))(drawn(net, rng)))
    found = [slopes["params"]["decoder"][name] for name in ("text_classifier", "mask_pooling")] + [slopes["params"]["void_embedding"]]
    assert all(np.abs(leaf).max() > 0 for part in found for leaf in jax.tree.leaves(part))
    assert not slopes["batch_stats"]["words"].any()


def test_the_parts_of_each_kind():
    parts = lambda **told: jax.eval_shape(mask2former(**SMALL, **CONVNEXT, **told).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    plain, pooled = parts(), parts(class_head="pooled")
    both = parts(**{**TEXT, "class_head": "linear"}, ensemble=True)
    assert set(pooled["params"]["decoder"]) - set(plain["params"]["decoder"]) == {"mask_pooling"}
    assert set(both["params"]) - set(plain["params"]) == {"void_embedding"}
    assert set(both["batch_stats"]) == {"words", "clip_logit_scale"} and not plain.get("batch_stats")


def test_a_clips_heads_by_hand():
    rng = np.random.default_rng(3)
    masks = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    inside = masks > 0
    for tower, look in (
        (ConvNeXtTower(6, depths=(1,) * 4, dims=(4, 4, 8, 8), head_width=8), masked_head),
        (ModifiedResNet(6, 64, (1,) * 4, 4, 2), masked_attention_pool),
    ):
        shape = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shape)
        channels = 8 if look is masked_head else 128
        top = rng.normal(size=(2, 3, 3, channels)).astype(np.float32)
        got = jax.jit(functools.partial(look, tower))(params, top, masks)
        dense = lambda name, x, p=params: x @ np.asarray(p[name]["kernel"], np.float64) + np.asarray(p[name].get("bias", 0.0))
        if look is masked_head:
            x = np.einsum("bhwc,bhwq->bqc", top, inside) / np.maximum(inside.sum((1, 2)), 1)[..., None]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + tower.epsilon)
            x = dense("head_fc1", x * np.asarray(params["head_norm"]["scale"]) + np.asarray(params["head_norm"]["bias"]))
            want = dense("head_fc2", np.asarray(jax.nn.gelu(x, approximate=False)))
            np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
            continue
        pool = params["attnpool"]
        grid = np.asarray(jax.image.resize(pool["positional_embedding"][1:].reshape(2, 2, channels), (3, 3, channels), "linear"))
        dense = lambda name, x, p=pool: x @ np.asarray(p[name]["kernel"], np.float64) + np.asarray(p[name]["bias"])
        for b, q in ((0, 0), (1, 3)):
            places = (top[b] + grid)[inside[b, :, :, q]]
            query = dense("q_proj", top[b].mean((0, 1)) + np.asarray(pool["positional_embedding"][0])).reshape(2, -1)
            key, value = (dense(name, places).reshape(len(places), 2, -1) for name in ("k_proj", "v_proj"))
            logits = np.einsum("hd,nhd->hn", query, key) / np.sqrt(channels / 2)
            share = np.exp(logits - logits.max(1, keepdims=True))
            mixed = np.einsum("hn,nhd->hd", share / share.sum(1, keepdims=True), value).reshape(-1)
            want = dense("c_proj", mixed)
            np.testing.assert_allclose(got[b, q], want, atol=2e-3 * np.abs(want).max())


def test_what_cannot_be_is_refused():
    for told, message in (
        (dict(class_head="words"), "model.class_head='words': expected one of linear, pooled, text"),
        (dict(class_head="text"), "expected a number of words for each of 2 classes"),
        ({**TEXT, "embed_dim": 7, "ensemble": True}, "model.embed_dim=7: ensemble compares .* its vectors have 6 numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            jax.eval_shape(mask2former(**SMALL, **CONVNEXT, **told).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    swin = dict(backbone="swin", backbone_embed_dim=4, backbone_depths=(1, 1, 1, 1), backbone_num_heads=(1, 1, 1, 2), backbone_window=3)
    with pytest.raises(ConfigError, match="Swin is no CLIP"):
        jax.eval_shape(mask2former(**SMALL, **swin, **TEXT, ensemble=True).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(ConfigError, match=r"words \[3, 6\]: the network has none"):
        with_words({"batch_stats": {}}, WORDS)
