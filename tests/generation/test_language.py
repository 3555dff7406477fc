"""Texts from the tiny Llama: the golden's greedy tokens, and draws that depend on prompt, seed and index alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden
from jax.sharding import AxisType

from segjax.errors import ConfigError
from segjax.generation import language
from segjax.generation.language import Sampling, Writer, choose
from segjax.runtime.mesh import make_mesh, shard_rules

SEED, NEW = 7, 6
PROMPTS = [[1, 5, 9, 300], [1, 8], [1, 200, 30, 31, 32, 33], [1, 77, 78], [1, 5, 9, 300]]


@pytest.fixture(scope="module")
def golden(goldens):
    return Golden(goldens / "llama_hf")


@pytest.fixture(scope="module")
def model(golden):
    return golden.net(), golden.variables(golden.net())


def _writer(model, devices=1, fsdp=1, sampling=None, stop=(), unit=2, new_tokens=NEW, suppress=()):
    mesh = make_mesh(devices // fsdp, fsdp)
    return Writer(
        model[0], model[1], mesh, new_tokens=new_tokens, sampling=sampling or Sampling(1.0, 0, 0.9), stop=stop, unit=unit, suppress=suppress
    )


@pytest.fixture(scope="module")
def writer(model):
    """On one device, two texts at once."""
    return _writer(model)


@pytest.fixture(scope="module")
def drawn(writer):
    return writer(PROMPTS, range(5), seed=SEED)


def test_greedy_tokens_of_the_golden(model, golden):
    """Both prompts in one batch, the end token suppressed, as the golden has it."""
    prompts = [golden.arrays[f"in_ids_{n}"][0].tolist() for n in (0, 1)]
    found = _writer(model, sampling=Sampling(0.0), suppress=(2,), new_tokens=12)(prompts, (0, 1), seed=0)
    for n, text in enumerate(found):
        assert text.tokens == golden.arrays[f"out_greedy12_{n}"][0].tolist() and not text.ended


def test_every_draw_has_its_own_index(drawn):
    assert all(len(text.tokens) == NEW and not text.ended for text in drawn)
    assert drawn[0] != drawn[4], "one prompt twice, two indices"


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 4)])
def test_eight_devices_write_what_one_does(model, drawn, devices, fsdp, monkeypatch):
    """Other batches, another order, parameters sharded, small ones too: the same tokens."""
    monkeypatch.setattr(language.meshes, "shard_rules", functools.partial(shard_rules, min_size=1))
    writer = _writer(model, devices, fsdp)
    if fsdp > 1:
        specs = jax.tree.leaves(jax.tree.map(lambda x: x.sharding.spec, writer._variables))
        assert sum("fsdp" in spec for spec in specs) == len(specs) == 12, "nothing was sharded"
    order = [3, 0, 4, 2, 1]
    assert writer([PROMPTS[n] for n in order], order, seed=SEED) == [drawn[n] for n in order]


def test_one_program_and_one_dispatch_a_batch(writer, drawn, monkeypatch):
    calls, run = [], writer._run
    monkeypatch.setattr(writer, "_run", lambda *inputs: calls.append(inputs[1].shape) or run(*inputs))
    assert writer(PROMPTS, range(5), seed=SEED) == drawn
    writer([[1, 2, 3] * 10, [4]], (0, 1), seed=SEED + 1)
    assert calls == [(2, 32)] * 4 and run._cache_size() == 1
    assert writer([[1] * 4], [0], seed=SEED, bucket=64) and run._cache_size() == 2


def test_a_text_ends_with_its_stop_token(model, drawn):
    """Stopped at its third token it keeps two; the other texts go on as they did, and nothing of the batch is lost."""
    stop = drawn[0].tokens[2]
    assert stop not in drawn[0].tokens[:2]
    found = _writer(model, stop=(stop, 419), unit=8)(PROMPTS, range(5), seed=SEED)
    assert found[0] == (drawn[0].tokens[:2], True)
    for text, whole in zip(found[1:], drawn[1:], strict=True):
        length = whole.tokens.index(stop) if stop in whole.tokens else NEW
        assert text == (whole.tokens[:length], length < NEW)


def test_other_seeds_draw_others(writer, drawn):
    assert writer(PROMPTS, range(5), seed=SEED + 1) != drawn


def _frequencies(logits, sampling, draws=4000):
    keys = jax.random.split(jax.random.key(0), draws)
    found = jax.jit(choose, static_argnums=2)(np.broadcast_to(np.asarray(logits, np.float32), (draws, len(logits))), keys, sampling)
    return np.bincount(np.asarray(found), minlength=len(logits)) / draws


def test_choices_have_the_probabilities_of_their_rule():
    share = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    assert _frequencies(np.log(share), Sampling(0.0)).tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(_frequencies(np.log(share), Sampling(1.0)), share, atol=0.03)
    warm = share**0.5 / (share**0.5).sum()
    np.testing.assert_allclose(_frequencies(np.log(share), Sampling(2.0)), warm, atol=0.03)
    np.testing.assert_allclose(_frequencies(np.log(share), Sampling(1.0, top_k=2)), np.array([0, 4, 0, 3, 0]) / 7, atol=0.03)
    np.testing.assert_allclose(_frequencies(np.log(share), Sampling(1.0, top_p=0.75)), np.array([0, 8, 0, 6, 3]) / 17, atol=0.03)
    np.testing.assert_allclose(_frequencies(np.log(share), Sampling(1.0, 4, 0.75)), np.array([0, 8, 0, 6, 3]) / 17, atol=0.03)
    assert _frequencies(np.log(share), Sampling(1.0, top_p=1e-6)).tolist() == [0, 1, 0, 0, 0]


def test_transformers_keeps_the_same_tokens():
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32) * 3
    for top_k, top_p in ((0, 0.8), (7, 1.0), (20, 0.6)):
        kept = torch.from_numpy(logits) / 0.7
        kept = warpers.TopKLogitsWarper(top_k)(None, kept) if top_k else kept
        kept = warpers.TopPLogitsWarper(top_p)(None, kept) if top_p < 1 else kept
        for row in range(3):
            found = _frequencies(logits[row], Sampling(0.7, top_k, top_p))
            expected = torch.softmax(kept[row], -1).numpy()
            assert not found[expected == 0].any()
            np.testing.assert_allclose(found, expected, atol=0.04)


def test_what_does_not_fit_is_refused(writer):
    with pytest.raises(ConfigError, match="507 tokens and 6 new ones exceed the model's context of 512"):
        writer([[1] * 507], [0], seed=0)
    with pytest.raises(ConfigError, match="prompts of 0 to 2 tokens: expected 1 to 32"):
        writer([[1, 2], []], [0, 1], seed=0)
    with pytest.raises(ConfigError, match="expected 1 to 32"):
        writer([[1] * 33], [0], seed=0, bucket=32)
    for wrong in (Sampling(-1.0), Sampling(1.0, -1), Sampling(1.0, 0, 0.0), Sampling(1.0, 0, 1.1), Sampling(float("nan"))):
        with pytest.raises(ConfigError, match="expected"):
            wrong.check()


def test_memory_is_sharded_and_of_the_compute_dtype(model):
    """Over fsdp a device holds a fraction; halved again in bfloat16."""
    net, variables = model
    mesh = make_mesh(1, 8)
    assert AxisType.Auto in mesh.axis_types
    tree = {"params": variables["params"]}
    held = language.placed(tree, shard_rules(tree, mesh, min_size=1), jnp.bfloat16)
    sizes = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(held)]
    assert sum(sizes) < 0.13 * 2 * sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) + 1000
