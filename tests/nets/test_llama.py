"""Llama's cache and padding: however a text is cut up or padded, its logits are those of the whole."""

import functools

import jax
import numpy as np
import pytest

from segjax.nets.llama import Llama, grouped_attention
from segjax.ops.attention import attention
from segjax.ops.rotary import rotary_table

NET = Llama(vocab_size=40, width=16, mlp_width=24, layers=2, heads=4, kv_heads=2, head_dim=4, context_length=8)


@pytest.fixture(scope="module", params=["default", "dynamic"])
def net(request):
    return NET.clone(rope=request.param, rope_scaling=(("factor", 3.0),))


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(NET.init, jax.random.key(0), *NET.example())
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: 0.5 * draw(leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).integers(0, 40, (3, 7)).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("net", "last", "room"))
def _call(net, variables, ids, mask=None, cache=None, *, last=False, room=0):
    return net.apply(variables, ids, mask, cache and cache.with_room(room), last=last)


def _whole(net, variables, ids):
    """Logits of rows without padding, which are padded here on the right: what stands there must not matter, and it compiles once."""
    slots = np.arange(8)
    padded = np.full((3, 8), 17, np.int32)
    padded[: len(ids), : ids.shape[1]] = ids
    logits = _call(net, variables, padded, (slots < ids.shape[1]) & np.ones((3, 1), bool))["logits"]
    return np.asarray(logits)[: len(ids), : ids.shape[1]]


def test_token_by_token(net, variables, ids):
    """Prefill of four tokens, then two, then one; every row within the context, where "dynamic" is plain."""
    expected = _call(net, variables, ids)["logits"]
    first = _call(net, variables, ids[:, :4])
    second = _call(net, variables, ids[:, 4:6], cache=first["cache"], room=5)
    third = _call(net, variables, ids[:, 6:], cache=second["cache"], last=True)
    np.testing.assert_allclose(np.concatenate([x["logits"] for x in (first, second, third)], 1), expected, rtol=0, atol=1e-5)
    assert third["cache"].used == 7 and third["cache"].keys.shape == (2, 3, 9, 2, 4)
    assert third["cache"].mask.tolist() == [[True] * 7 + [False] * 2] * 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(net, variables, ids, side):
    """A batch of texts of lengths 7, 4 and 2 gives each its own logits, with and without `last`; and so does the token after them."""
    lengths = np.array([7, 4, 2])
    slots = np.arange(7) if side == "right" else np.arange(7) - (7 - lengths[:, None])
    mask = (slots < lengths[:, None]) & (slots >= 0)
    padded = np.where(mask, np.take_along_axis(ids, np.maximum(slots, 0) * np.ones((3, 1), int), 1), 39)
    found = _call(net, variables, padded, mask)
    last = np.asarray(_call(net, variables, padded, mask, last=True)["logits"])
    after = np.asarray(_call(net, variables, np.full((3, 1), 5), cache=found["cache"], room=1)["logits"])
    logits = np.asarray(found["logits"])
    for row, length in enumerate(lengths):
        own = ids[row : row + 1, :length]
        np.testing.assert_allclose(logits[row][mask[row]], _whole(net, variables, own)[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(last[row, 0], _whole(net, variables, own)[0, -1], rtol=0, atol=1e-5)
        longer = np.concatenate([own, [[5]]], 1)
        np.testing.assert_allclose(after[row, 0], _whole(net, variables, longer)[0, -1], rtol=0, atol=1e-5)


def test_dynamic_stretches_a_row_by_its_own_length():
    positions = np.arange(20)[None].repeat(2, 0)
    run = jax.jit(lambda length, kind: rotary_table(positions, length, 8, 100.0, kind, {"factor": 3.0}, 8)[0], static_argnums=1)
    table = lambda length, kind: np.asarray(run(np.asarray(length), kind))
    both = table([8, 20], "dynamic")
    np.testing.assert_array_equal(both[0], table([8, 8], "default")[0])
    stretched = 100.0 * (3.0 * 20 / 8 - 2) ** (8 / 6)
    np.testing.assert_allclose(both[1], np.cos(np.arange(20)[:, None] * stretched ** -(np.arange(0, 8, 2) / 8)), atol=1e-5)
    with pytest.raises(ValueError, match="rotary embedding 'longrope': expected default"):
        table([8, 8], "longrope")


def test_groups_are_repeated_heads():
    draw = lambda *shape: np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
    query, key, value = draw(2, 3, 6, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 4) + 1
    mask = np.random.default_rng(0).random((2, 3, 5)) < 0.7
    mask[..., 0] = True
    expected = jax.jit(attention)(query, key.repeat(3, 2), value.repeat(3, 2), mask=mask[:, None])
    np.testing.assert_allclose(jax.jit(grouped_attention)(query, key, value, mask), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        (dict(), 6_738_415_616),
        (dict(width=8192, mlp_width=28672, layers=80, heads=64, kv_heads=8), 68_976_648_192),
        (dict(vocab_size=128256, mlp_width=14336, kv_heads=8), 8_030_261_248),
        (dict(vocab_size=128256, width=2048, mlp_width=8192, layers=16, kv_heads=8, head_dim=64, tied=True), 1_235_814_400),
    ],
    ids=["2-7B", "2-70B", "3-8B", "3.2-1B"],
)
def test_full_sizes(sizes, parameters):
    net = Llama(**sizes)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *net.example())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
