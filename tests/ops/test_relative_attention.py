"""Attention with decomposed relative positions: against the bias written out, its gradient, its memory; and the two smaller forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nets.sam_encoder import Block
from segjax.ops.attention import attention
from segjax.ops.attention_to_groups import attention_to_groups
from segjax.ops.attention_with_bias import attention_with_bias
from segjax.ops.relative_attention import _in_blocks, relative_attention, relative_vectors


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def bias_stored(query, key, value, rows, columns):
    """The textbook form: the bias of all pairs as an array [B,N,HW,HW]."""
    b, h, w, n, d = query.shape
    flat = lambda x: x.reshape(b, h * w, n, d).transpose(0, 2, 1, 3)
    down = jnp.einsum("byxnd,ykd->bnyxk", query, rows)[..., :, None]
    right = jnp.einsum("byxnd,xkd->bnyxk", query, columns)[..., None, :]
    bias = (down + right).reshape(b, n, h * w, h * w)
    logits = jnp.einsum("bnqd,bnkd->bnqk", flat(query), flat(key)) * d**-0.5 + bias
    mixed = jnp.einsum("bnqk,bnkd->bnqd", jax.nn.softmax(logits, -1), flat(value))
    return mixed.transpose(0, 2, 1, 3).reshape(b, h, w, n, d)


@pytest.mark.parametrize("block", [256, 14, 1])  # at once, two rows, one row at a time
def test_equals_the_stored_bias_and_its_gradient(block):
    query, key, value = (draw(2, 6, 7, 3, 4, seed=n) for n in range(3))
    tables = draw(11, 4, seed=3), draw(13, 4, seed=4)

    def loss(form, query, key, value, *tables):
        vectors = relative_vectors(tables[0], 6), relative_vectors(tables[1], 7)
        return jnp.sum(jnp.sin(form(query, key, value, *vectors)))

    form = lambda *arguments: relative_attention(*arguments, block=block)
    arguments = (query, key, value, *tables)
    joined = functools.partial(_in_blocks, block=block, joined=True)  # as on a TPU
    slopes = [jax.value_and_grad(functools.partial(loss, f), tuple(range(5))) for f in (form, joined, bias_stored)]
    *both, want = jax.jit(lambda *a: [slope(*a) for slope in slopes])(*arguments)
    for got in both:
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
        for ours, theirs in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


def test_joined_terms_keep_their_digits_in_bfloat16():
    """Terms of 30 and more, whose last digit in bfloat16 is an eighth or more: rounded, they are another attention."""
    query, key, value = (draw(2, 6, 7, 3, 4, seed=n).astype(jnp.bfloat16) for n in range(3))
    vectors = [jnp.asarray(16 * draw(n, n, 4, seed=n)) for n in (6, 7)]
    plain, joined = (jax.jit(functools.partial(_in_blocks, block=14, joined=j))(query, key, value, *vectors) for j in (False, True))
    np.testing.assert_allclose(np.float32(joined), np.float32(plain), rtol=0, atol=0.02)
    text = jax.jit(relative_attention).trace(query, key, value, *vectors).lower(lowering_platforms=("tpu",)).as_text()
    assert "tensor<2x3x42x30xbf16>" in text  # 4 numbers of a key beside what selects twice 6 and twice 7


def test_without_positions_it_is_plain_attention():
    query, key, value = (draw(2, 6, 7, 3, 4, seed=n) for n in range(3))
    plain = lambda *a: attention(*(x.reshape(2, 42, 3, 4) for x in a))
    got, want = jax.jit(lambda *a: (relative_attention(*a, block=8), plain(*a)))(query, key, value)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=0, atol=2e-6)


def test_vectors_are_indexed_and_resized_as_torch_does():
    table = draw(7, 5)
    vectors, larger = jax.device_get(jax.jit(lambda table: (relative_vectors(table, 4), relative_vectors(table, 6)))(table))
    for i in range(4):
        for j in range(4):
            np.testing.assert_array_equal(vectors[i, j], table[i - j + 3])
    torch = pytest.importorskip("torch")
    resized = torch.nn.functional.interpolate(torch.from_numpy(np.array(table)).T[None], 11, mode="linear")[0].T.numpy()
    np.testing.assert_allclose(larger[5, 0], resized[10], rtol=0, atol=1e-6)
    np.testing.assert_allclose(larger[2, 4], resized[3], rtol=0, atol=1e-6)


def temporary(function, *arguments):
    """Bytes of temporaries. XLA:CPU's YNN fusions allocate inside themselves, unseen by the analysis, so they are switched off."""
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""}).memory_analysis().temp_size_in_bytes


def test_a_global_block_at_64x64_needs_a_quarter_of_the_memory():
    """ViT-B's: 12 heads of 64 channels, 4096 tokens. Ours is the whole block, with norms and MLP; theirs the attention alone."""
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    arguments = [shape(1, 64, 64, 12, 64)] * 3 + [shape(64, 64, 64)] * 2
    stored, attending = temporary(bias_stored, *arguments), temporary(relative_attention, *arguments)
    block, image = Block(num_heads=12, mlp_dim=3072, window=0, grid=64), shape(1, 64, 64, 768)
    variables = jax.eval_shape(block.init, jax.random.key(0), image)
    whole = temporary(lambda v, x: block.apply(v, x)[0], variables, image)
    print(f"temporary MiB: bias stored {stored / 2**20:.0f}, here {attending / 2**20:.0f}, whole block {whole / 2**20:.0f}")
    assert stored >= 2 * 12 * 4096**2 * 4 * 0.9  # logits and probabilities at least
    assert attending <= stored / 4 and whole <= stored / 4


def test_one_query_set_to_many_groups():
    query, key, value = draw(2, 5, 3, 4), draw(2, 6, 7, 3, 4, seed=1), draw(2, 6, 7, 3, 4, seed=2)
    mask = np.random.default_rng(3).random((2, 6, 7)) > 0.4
    mask[..., 0] = True

    @jax.jit
    def run(query, key, value):
        each = [attention(query, key[:, g], value[:, g], mask=jnp.asarray(mask[:, g])[:, None, None]) for g in range(6)]
        free = attention_to_groups(query, key, value)[:, 2], attention(query, key[:, 2], value[:, 2])
        return (attention_to_groups(query, key, value, jnp.asarray(mask)), jnp.stack(each, 1)), free

    for got, want in run(query, key, value):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_a_bias_for_every_pair():
    query, key, value, bias = (*(draw(2, 5, 3, 4, seed=n) for n in range(3)), draw(3, 5, 5))
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / 2 + np.asarray(bias)
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    got = jax.jit(attention_with_bias)(query, key, value, bias)
    np.testing.assert_allclose(got, np.einsum("bhqk,bkhd->bqhd", weight, value), rtol=0, atol=2e-6)


def test_a_large_image_takes_the_platforms_blocks():
    query, key, value = (draw(1, 48, 32, 2, 4, seed=n) for n in range(3))
    vectors = draw(48, 48, 4, seed=3), draw(32, 32, 4, seed=4)
    got, want = (jax.jit(form)(query, key, value, *vectors) for form in (relative_attention, bias_stored))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
