"""What a public layout is made of: transforms of arrays, rules of names, forms, and the entry that `segjax convert` meets.

A layout is data, a tuple of `Rule`s, and serves every width, depth and class count: segjax/weights/walk.py carries arrays both ways.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """What happens to one array on the way in, and its exact inverse on the way out."""

    to_segjax: Callable[[np.ndarray], np.ndarray]
    to_source: Callable[[np.ndarray], np.ndarray]


IDENTITY = Transform(lambda x: x, lambda x: x)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
"""torch OIHW <-> HWIO."""
CONV_TRANSPOSE = Transform(lambda x: x.transpose(2, 3, 0, 1), lambda x: x.transpose(2, 3, 0, 1))
"""torch [in, out, kh, kw] <-> [kh, kw, in, out] (segjax.nets.layers.ConvTranspose)."""
DENSE = Transform(lambda x: x.T, lambda x: x.T)
"""torch [out, in] <-> [in, out]."""
POINTWISE = Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
"""torch 1x1 convolution [out, in, 1, 1] <-> [in, out], for a Dense layer."""


def reshaped(inner: Callable[[tuple[int, ...]], tuple[int, ...]], outer: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Transform:
    """A change of shape alone: `inner` gives segjax's shape from the source's, `outer` the way back."""
    return Transform(lambda x: x.reshape(inner(x.shape)), lambda x: x.reshape(outer(x.shape)))


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parameters whose whole path matches `path` come from the source key `source`.

    path: regular expression over a full segjax path, e.g. r"params/(layer\\d)/blocks/(conv\\d)/kernel".
    source: template filled with the expression's groups as {0}, {1}, ...; the word {i} marks a scanned parameter: its leading axis
        stacks the sources of i = first, first + 1, ... (as many as the axis is long). A tuple of keys spells such a stack out.
    join: the axis (of one layer's segjax array, after `transform`) along which the templates of the tuple `source` lie side by side in
        equal parts, e.g. the separate query, key and value of one public layout in the one `qkv` kernel here: join=-1.
    copies: further templates that hold the same array (tied weights, a buffer stored twice): compared if there on the way in, written on
        the way out.
    number: (i, groups) -> the {i} of the i-th layer where the layers of a stack do not simply follow each other from `first`.
    levels: how many leading axes the stack has, in row-major order: 2 for a scan within a scan; there a template with the word {j} counts
        the outer axis by {i}, the inner one by {j} (from 0).
    share: (first, last, of): of the source's leading axis, cut into `of` equal parts, the parameter is parts first..last-1; the rules
        of its other shares name the same source, e.g. the query in an `in_proj_weight` that stacks query, key and value: (0, 1, 3).
        Where `of` is None, first and last are rows, as in a slice: (0, -1, None) is all but the last, (-1, None, None) the last.
    """

    path: str
    source: str | tuple[str, ...]
    transform: Transform = IDENTITY
    first: int = 0
    join: int | None = None
    copies: tuple[str, ...] = ()
    number: Callable[[int, tuple[str, ...]], int] | None = None
    levels: int = 1
    share: tuple[int, int | None, int | None] | None = None

    @property
    def stacked(self) -> bool:
        if self.join is not None:
            return any("{i}" in part for part in self.source)
        return isinstance(self.source, tuple) or "{i}" in self.source

    def keys(self, groups: tuple[str, ...], shape: tuple[int, ...]) -> list[tuple[str, ...]]:
        """The source keys of a parameter of this shape, whose match gave `groups`: a tuple of one or, joined, several for each layer."""
        if isinstance(self.source, tuple) and self.join is None:
            return [(key,) for key in self.source]
        parts = self.source if isinstance(self.source, tuple) else (self.source,)
        if self.levels == 2 and any("{j}" in part for part in parts):
            return [self._fill(parts, groups, i, j) for i in range(shape[0]) for j in range(shape[1])]
        return [self._fill(parts, groups, i) for i in range(math.prod(shape[: self.levels]) if self.stacked else 1)]

    def copied(self, groups: tuple[str, ...], layers: int) -> list[tuple[str, ...]]:
        """The keys of the copies of each layer."""
        return [self._fill(self.copies, groups, i) for i in range(layers)]

    def _fill(self, templates: tuple[str, ...], groups: tuple[str, ...], i: int, j: int = 0) -> tuple[str, ...]:
        number = self.first + i if self.number is None else self.number(i, groups)
        return tuple(part.format(*groups, i=number, j=j) for part in templates)

    def to_segjax(self, parts: list[np.ndarray]) -> np.ndarray:
        """One layer's array out of its sources."""
        if self.share is not None:
            parts = [part[_rows(part.shape[0], *self.share)] for part in parts]
        parts = [self.transform.to_segjax(part) for part in parts]
        return parts[0] if self.join is None else np.concatenate(parts, self.join)

    def to_source(self, layer: np.ndarray, count: int) -> list[np.ndarray]:
        """The way back, in `count` equal parts."""
        parts = [layer] if self.join is None else np.split(layer, count, self.join)
        return [self.transform.to_source(part) for part in parts]


def _rows(length: int, first: int, last: int | None, of: int | None) -> slice:
    """A `share` of an axis of that length."""
    return slice(first, last) if of is None or last is None else slice(length * first // of, length * last // of)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One form of a public layout: its rules, first match wins, and the source keys that mean nothing here (regular expressions).

    derived: the written arrays -> further ones that follow from their shapes, for files that hold such (position numbers, sizes).
    """

    name: str
    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    derived: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Public:
    """A public layout as the `convert` verb meets it; `segjax convert --layout=package.module:NAME` takes one from anywhere.

    recognises: source keys -> is it this one? layout: keys (the source's, or flat segjax paths on the way back) -> its form.
    model: (source arrays, the layout's own config.json or {}) -> the network that they describe, `{"make": ..., **kwargs}`; WeightsError
        where they describe none.
    config: the network (`model`'s answer, as a segjax file keeps it) -> the config of a hub's folder, for layouts whose public code
        reads one. WeightsError: the public code has no such network.
    file, config_file: what that folder calls the weights and the config.
    forms: the forms that `layout` chooses among where segjax paths alone cannot tell them apart on the way back; the name of the one that
        was read is kept in the file.
    """

    name: str
    recognises: Callable[[Iterable[str]], bool]
    layout: Callable[[Iterable[str]], Layout]
    model: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], dict[str, Any]]
    reversible: bool = True
    config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    file: str = "model.safetensors"
    config_file: str = "config.json"
    forms: tuple[Layout, ...] = ()
