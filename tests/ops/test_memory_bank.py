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
    return np.asarray(values, np.float32)[:, None] * np.ones((1, 3), np.float32), np.asarray(values) % 5


push = jax.jit(memory_bank.push)
pushed = lambda *a: jax.device_get(push(*a))


def test_the_newest_rows_stay_and_the_oldest_go_first():
    bank = memory_bank.empty(5, 3)
    assert bank.label.dtype == jnp.uint8 and (bank.label == 255).all()
    bank = pushed(bank, *rows([1, 2, 3]))
    assert bank.label.tolist() == [1, 2, 3, 255, 255] and bank.cursor == 3
    bank = pushed(bank, *rows([4, 6, 7]))  # wraps round
    assert bank.embedding[:, 0].tolist() == [7, 2, 3, 4, 6] and bank.label.tolist() == [2, 2, 3, 4, 1] and bank.cursor == 1
    bank = pushed(bank, *rows([10, 11, 12, 13, 14]))  # the whole ring
    assert bank.embedding[:, 0].tolist() == [14, 10, 11, 12, 13] and bank.cursor == 1
    assert bank.embedding.dtype == jnp.float32 and bank.label.dtype == jnp.uint8 and bank.cursor.dtype == jnp.int32


def test_what_does_not_fit_is_refused():
    bank = memory_bank.empty(4, 3)
    with pytest.raises(ConfigError, match=r"embeddings \[5, 3\] with labels \[5\] for a memory of 4 x 3"):
        memory_bank.push(bank, np.zeros((5, 3)), np.zeros(5, np.uint8))
    with pytest.raises(ConfigError, match=r"embeddings \[2, 4\]"):
        memory_bank.push(bank, np.zeros((2, 4)), np.zeros(2, np.uint8))
    with pytest.raises(ConfigError, match=r"with labels \[3\]"):
        memory_bank.push(bank, np.zeros((2, 3)), np.zeros(3, np.uint8))


def test_an_empty_row_is_no_key():
    rng = np.random.default_rng(0)
    anchors, label = rng.normal(size=(6, 3)).astype(np.float32), np.arange(6) % 2
    bank = push(memory_bank.empty(9, 3), anchors, label)
    for form in ("all", "negatives"):
        loss = functools.partial(supervised_contrastive, num_classes=2, form=form)
        plain, kept = jax.jit(lambda b, loss=loss: (loss(anchors, anchors, label, label), loss(anchors, b.embedding, label, b.label)))(bank)
        np.testing.assert_allclose(kept, plain, rtol=1e-6)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_sharded_rows_enter_in_the_order_of_one_device(fsdp):
    embedding, label = rows(np.arange(16))
    mesh = make_mesh(8 // fsdp, fsdp)
    split, held = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec("fsdp" if fsdp > 1 else None))
    bank = jax.device_put(memory_bank.empty(22, 3), NamedSharding(mesh, PartitionSpec()))
    bank = bank._replace(embedding=jax.device_put(bank.embedding, held))
    expected = memory_bank.empty(22, 3)
    for shift in (0, 100, 200):
        with jax.set_mesh(mesh):
            bank = push(bank, jax.device_put(embedding + shift, split), jax.device_put(label, split))
        expected = push(expected, embedding + shift, label)
    jax.tree.map(np.testing.assert_array_equal, bank, expected)
