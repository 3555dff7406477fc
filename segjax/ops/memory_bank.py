"""Embeddings and labels of earlier steps: more keys for a contrastive loss than one batch has."""

from typing import NamedTuple

import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.typing import IGNORE, Array


class MemoryBank(NamedTuple):
    """A ring buffer. Rows that were never written have the label 255, which every loss ignores."""

    embedding: Array
    """float32 [M,D]"""
    label: Array
    """uint8 [M]"""
    cursor: Array
    """int32 scalar in 0..M-1: the row that is written next, the oldest one once the bank is full."""


def empty(size: int, dims: int) -> MemoryBank:
    """A bank for `size` embeddings of `dims` numbers each."""
    return MemoryBank(jnp.zeros((size, dims), jnp.float32), jnp.full(size, IGNORE, jnp.uint8), jnp.zeros((), jnp.int32))


def push(bank: MemoryBank, embedding: Array, label: Array) -> MemoryBank:
    """The bank with embedding [N,D] and label [N] in place of its N oldest rows. N is static, at most the bank's size.

    Raises ConfigError when they do not fit. Embeddings of ignored pixels take their rows too and count nowhere: shapes stay static.
    """
    size, dims = bank.embedding.shape
    if len(embedding) > size or embedding.shape[1:] != (dims,) or label.shape != embedding.shape[:1]:
        raise ConfigError(
            f"embeddings {list(embedding.shape)} with labels {list(label.shape)} for a memory of {size} x {dims}: "
            f"expected at most {size} of {dims} numbers (a larger memory, or fewer samples a step)"
        )
    row = (bank.cursor + jnp.arange(len(embedding))) % size
    write = {"mode": "promise_in_bounds", "unique_indices": True}
    return MemoryBank(
        bank.embedding.at[row].set(embedding.astype(jnp.float32), **write),
        bank.label.at[row].set(label.astype(jnp.uint8), **write),
        (bank.cursor + len(embedding)) % size,
    )
