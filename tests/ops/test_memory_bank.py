"""The ring of earlier keys: order, wrap-around, what is refused, and what it does to a loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from segjax.errors import ConfigError
from segjax.ops import memory_bank
from segjax.ops.contrastive import supervised_contrastive
from segjax.runtime.mesh import batch_sharding, make_mesh


def rows(values):
    return jnp.asarray(values, jnp.float32)[:, None] * jnp.ones((1, 3)), jnp.asarray(values) % 5


def test_the_newest_rows_stay_and_the_oldest_go_first():
    bank, push = memory_bank.empty(5, 3), jax.jit(memory_bank.push)
    assert bank.label.dtype == jnp.uint8 and (bank.label == 255).all()
    bank = push(bank, *rows([1, 2, 3]))
    assert bank.label.tolist() == [1, 2, 3, 255, 255] and bank.cursor == 3
    bank = push(bank, *rows([4, 6, 7]))  # wraps round
    assert bank.embedding[:, 0].tolist() == [7, 2, 3, 4, 6] and bank.label.tolist() == [2, 2, 3, 4, 1] and bank.cursor == 1
    bank = push(bank, *rows([10, 11, 12, 13, 14]))  # the whole ring
    assert bank.embedding[:, 0].tolist() == [14, 10, 11, 12, 13] and bank.cursor == 1
    assert bank.embedding.dtype == jnp.float32 and bank.label.dtype == jnp.uint8 and bank.cursor.dtype == jnp.int32


def test_what_does_not_fit_is_refused():
    bank = memory_bank.empty(4, 3)
    with pytest.raises(ConfigError, match=r"embeddings \[5, 3\] with labels \[5\] for a memory of 4 x 3"):
        memory_bank.push(bank, jnp.zeros((5, 3)), jnp.zeros(5, jnp.uint8))
    with pytest.raises(ConfigError, match=r"embeddings \[2, 4\]"):
        memory_bank.push(bank, jnp.zeros((2, 4)), jnp.zeros(2, jnp.uint8))
    with pytest.raises(ConfigError, match=r"with labels \[3\]"):
        memory_bank.push(bank, jnp.zeros((2, 3)), jnp.zeros(3, jnp.uint8))


def test_an_empty_row_is_no_key():
    rng = np.random.default_rng(0)
    anchors, label = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), jnp.arange(6) % 2
    bank = memory_bank.push(memory_bank.empty(9, 3), anchors, label)
    for form in ("all", "negatives"):
        loss = jax.jit(functools.partial(supervised_contrastive, num_classes=2, form=form))
        plain, kept = loss(anchors, anchors, label, label), loss(anchors, bank.embedding, label, bank.label)
        np.testing.assert_allclose(kept, plain, rtol=1e-6)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_sharded_rows_enter_in_the_order_of_one_device(fsdp):
    embedding, label = rows(np.arange(16))
    mesh = make_mesh(8 // fsdp, fsdp)
    split, held = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec("fsdp" if fsdp > 1 else None))
    bank = jax.device_put(memory_bank.empty(22, 3), NamedSharding(mesh, PartitionSpec()))
    bank = bank._replace(embedding=jax.device_put(bank.embedding, held))
    expected = memory_bank.empty(22, 3)
    with jax.set_mesh(mesh):
        push = jax.jit(memory_bank.push)
        for shift in (0, 100, 200):
            bank = push(bank, jax.device_put(embedding + shift, split), jax.device_put(label, split))
            expected = memory_bank.push(expected, embedding + shift, label)
    jax.tree.map(np.testing.assert_array_equal, bank, expected)
