"""EfficientSAM, of which no golden exists: the parts that differ from SAM's against numpy, sizes, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.nets.efficient_sam import EfficientSam, PointEncoder
from segjax.nets.two_way import TwoWayBlock
from segjax.ops import prompts

TINY = EfficientSam(64, 16, 32, 2, 2, 64, 3, 32, decoder_heads=4, decoder_mlp_dim=48, iou_hidden=24)


def self_attention(params, x):
    """Two heads of four channels over x [5,8], with the output projection."""
    project = lambda name: np.asarray(x @ params[name]["kernel"] + params[name]["bias"])
    query, key, value = (project(f"{part}_proj").reshape(5, 2, 4) for part in "qkv")
    weight = np.exp(np.einsum("qhd,khd->hqk", query, key) / 2)
    mixed = np.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdims=True), value).reshape(5, 8)
    return mixed @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


@pytest.mark.parametrize("first", [True, False])
def test_the_two_way_blocks_self_attention(first):
    """In the first block a residual, in the later ones positions in queries, keys, values and residual."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    arguments = tokens, image, pe, image_pe = draw(1, 1, 5, 8), draw(1, 1, 6, 8), draw(1, 1, 5, 8), draw(6, 8)
    block = TwoWayBlock(2, 16, first, efficient=True, activation="gelu")
    like = jax.eval_shape(lambda key: block.init(key, *arguments, None), jax.random.key(1))["params"]
    params = jax.tree.map(lambda x: 0.3 * draw(*x.shape), like)
    entered = []

    def look(call, args, kwargs, context):
        entered.extend(args[:1] if context.module.name == "norm1" else ())
        return call(*args, **kwargs)

    @jax.jit
    def run(params):
        with nn.intercept_methods(look):
            block.apply({"params": params}, *arguments, None)
        return entered[0]

    entered = [np.asarray(run(params))]
    x = tokens[0, 0] if first else tokens[0, 0] + pe[0, 0]
    np.testing.assert_allclose(entered[0][0, 0], x + self_attention(params["self_attn"], x), rtol=0, atol=3e-6)


def test_six_slots():
    encoder = PointEncoder(8)
    points, labels = np.array([[[[3.0, 5], [1, 2], [9, 7]]]], np.float32), np.array([[[1, 2, prompts.PADDING]]])
    run = jax.jit(lambda key: encoder.init_with_output(key, points, labels, (32, 64)))
    got, tree = jax.device_get(run(jax.random.key(2)))
    got = got[0, 0]
    matrix, params = np.asarray(jax.tree.leaves(tree["batch_stats"])[0]), tree["params"]
    place = lambda x, y: 2 * np.pi * ((2 * np.array([(x + 0.5) / 64, (y + 0.5) / 32]) - 1) @ matrix)
    token = lambda x, y, kind: np.concatenate([np.sin(place(x, y)), np.cos(place(x, y))]) + np.asarray(params[kind])[0]
    want = [token(3, 5, "point_embeddings"), token(1, 2, "bbox_top_left_embeddings"), *[token(-1, -1, "invalid_points")] * 4]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_shapes_and_padding():
    rng = np.random.default_rng(0)
    image = rng.random((2, 64, 64, 3), np.float32)
    points, labels = prompts.pack(np.array([[[[5.0, 9]], [[40, 30]]]] * 2), np.ones((2, 2, 1)))
    like = jax.eval_shape(TINY.init, jax.random.key(0), image, points, labels)
    params = jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), like)
    run = jax.jit(TINY.apply)
    masks, iou = run(params, image, points, labels)
    assert masks.shape == (2, 2, 3, 16, 16) and iou.shape == (2, 2, 3)
    wide = [(0, 0), (0, 0), (0, 3)]
    padded = run(params, image, np.pad(points, (*wide, (0, 0))), np.pad(labels, wide, constant_values=prompts.PADDING))
    np.testing.assert_allclose(padded[0], masks, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="no mask prompts"):
        TINY.apply(params, jnp.zeros((1, 4, 4, 32)), points[:1], labels[:1], np.zeros((1, 2, 16, 16)), method="decode")
