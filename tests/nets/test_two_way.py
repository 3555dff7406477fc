"""Attention between a prompt's tokens and an image's pixels, folded (few tokens) and not, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nets.two_way import Attention

HEADS, WIDTH, INNER, PIXELS = 2, 12, 16, 40


def by_hand(params, query, key, value, mask):
    """One group: query [N,C], key and value [M,C], mask bool [M]."""
    project = lambda x, name: (x @ params[name]["kernel"] + params[name]["bias"]).reshape(len(x), HEADS, -1)
    query, key, value = project(query, "q_proj"), project(key, "k_proj"), project(value, "v_proj")
    weight = np.exp(np.einsum("nhd,mhd->hnm", query, key) / np.sqrt(INNER / HEADS)) * mask
    mixed = np.einsum("hnm,mhd->nhd", weight / weight.sum(-1, keepdims=True), value).reshape(len(query), INNER)
    return mixed @ params["out_proj"]["kernel"] + params["out_proj"]["bias"]


@pytest.mark.parametrize("tokens", [3, 9])  # 3 tokens by 2 heads are fewer than 16 channels, 9 are not
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_ways(tokens, dtype):
    rng = np.random.default_rng(tokens)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    few, placed, image = draw(1, 2, tokens, WIDTH), draw(1, 2, PIXELS, WIDTH), draw(1, 2, PIXELS, WIDTH)
    mask = np.ones((1, 2, tokens), bool)
    mask[0, 1, 1:] = False
    net = Attention(HEADS, INNER, dtype)
    call = jax.jit(lambda params, *x: net.apply({"params": params}, *x))
    like = jax.eval_shape(net.init, jax.random.key(0), few, placed, image)["params"]
    params = jax.tree.map(lambda x: 0.3 * draw(*x.shape), like)
    atol = 1e-5 if dtype == jnp.float32 else 0.1
    for arguments in ((few, placed, image), (placed, few, few, mask), (placed[:, :1], few, few, mask)):
        got = np.asarray(call(params, *arguments), np.float32)
        there = arguments[3] if len(arguments) > 3 else np.ones((1, 2, PIXELS), bool)
        for group in range(2):
            want = by_hand(params, *(x[0, min(group, x.shape[1] - 1)] for x in (*arguments[:3], there)))
            np.testing.assert_allclose(got[0, group], want, rtol=0, atol=atol)
