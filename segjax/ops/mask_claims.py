"""Which classes' masks have claimed each pixel, as bits: 32 classes take 4 bytes a pixel, however many masks there are."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from segjax.typing import IGNORE, Array

Enlarge: TypeAlias = Callable[[Array], Array]
"""Mask logits [Q,h,w] -> those at the size of the label map [Q,H,W]."""


class Claims(NamedTuple):
    """What masks have claimed so far. count uint8 [B,H,W]: by how many masks, at most 2. classes: tuple of uint32 [B,H,W], one bit a
    class (32 classes each): by masks of which classes."""

    count: Array
    classes: tuple[Array, ...]


def no_claims(shape: tuple[int, ...], num_classes: int) -> Claims:
    """Before the first mask, for label maps of `shape`."""
    return Claims(jnp.zeros(shape, jnp.uint8), tuple(jnp.zeros(shape, jnp.uint32) for _ in range(-(-num_classes // 32))))


def claimed(claims: Claims, enlarge: Enlarge, logits: Array, classes: Array, valid: Array) -> Claims:
    """After the masks of logits [B,n,h,w], of classes int [B,n], where valid bool [B,n]. One full-size mask an image exists at a time."""

    def one(claims: Claims, part: tuple[Array, ...]) -> tuple[Claims, None]:
        logits, kind, valid = part
        mask = (enlarge(logits) > 0) & valid[:, None, None]
        count = jnp.minimum(claims.count + mask, 2).astype(jnp.uint8)
        bits = lambda word: jnp.where(kind // 32 == word, jnp.uint32(1) << (kind % 32).astype(jnp.uint32), jnp.uint32(0))
        words = tuple(old | jnp.where(mask, bits(n)[:, None, None], jnp.uint32(0)) for n, old in enumerate(claims.classes))
        return Claims(count, words), None

    parts: Any = tuple(jnp.moveaxis(x, 1, 0) for x in (logits, classes, valid))
    return lax.scan(one, claims, parts)[0]


def of_label(label: Array, num_classes: int) -> list[Array]:
    """One bit a pixel for its class, in words of 32 classes; none for an id of no class."""
    kind = label.astype(jnp.uint32)
    bit = jnp.where(kind < num_classes, jnp.uint32(1) << kind % 32, jnp.uint32(0))
    return [jnp.where(kind // 32 == n, bit, jnp.uint32(0)) for n in range(-(-num_classes // 32))]


def by_class(words: list[Array], num_classes: int) -> Array:
    """The bits of the words as bool [...,num_classes]."""
    places = [jnp.arange(min(32, num_classes - 32 * n), dtype=jnp.uint32) for n in range(len(words))]
    return jnp.concatenate([(word[..., None] >> place) & 1 for word, place in zip(words, places, strict=True)], -1).astype(bool)


def highest(words: list[Array]) -> Array:
    """The highest class of each pixel, uint8 [B,H,W]; IGNORE where there is none."""
    found = jnp.full(words[0].shape, IGNORE, jnp.uint8)
    for n, word in enumerate(words):
        found = jnp.where(word == 0, found, (32 * n + 31 - lax.clz(word).astype(jnp.int32)).astype(jnp.uint8))
    return found
