"""One strict engine between a public checkpoint's names and segjax's parameter tree, in both directions.

A layout is data: a tuple of `Rule`s. The tree of the actual network (`jax.eval_shape` of its init) decides which parameters exist,
so one table serves every width, depth and class count. Nothing is skipped in silence: every source key is used or matches an `ignore`
pattern, every parameter is set, every shape is checked; whatever is left is listed in one WeightsError.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import safetensors_io


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
    levels: how many leading axes the stack has, in row-major order: 2 for a scan within a scan.
    share: (first, last, of): of the source's leading axis, cut into `of` equal parts, the parameter is parts first..last-1; the rules
        of its other shares name the same source, e.g. the query in an `in_proj_weight` that stacks query, key and value: (0, 1, 3).
    """

    path: str
    source: str | tuple[str, ...]
    transform: Transform = IDENTITY
    first: int = 0
    join: int | None = None
    copies: tuple[str, ...] = ()
    number: Callable[[int, tuple[str, ...]], int] | None = None
    levels: int = 1
    share: tuple[int, int, int] | None = None

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
        return [self._fill(parts, groups, i) for i in range(math.prod(shape[: self.levels]) if self.stacked else 1)]

    def copied(self, groups: tuple[str, ...], layers: int) -> list[tuple[str, ...]]:
        """The keys of the copies of each layer."""
        return [self._fill(self.copies, groups, i) for i in range(layers)]

    def _fill(self, templates: tuple[str, ...], groups: tuple[str, ...], i: int) -> tuple[str, ...]:
        number = self.first + i if self.number is None else self.number(i, groups)
        return tuple(part.format(*groups, i=number) for part in templates)

    def to_segjax(self, parts: list[np.ndarray]) -> np.ndarray:
        """One layer's array out of its sources."""
        if self.share is not None:
            first, last, of = self.share
            parts = [part[part.shape[0] * first // of : part.shape[0] * last // of] for part in parts]
        parts = [self.transform.to_segjax(part) for part in parts]
        return parts[0] if self.join is None else np.concatenate(parts, self.join)

    def to_source(self, layer: np.ndarray, count: int) -> list[np.ndarray]:
        """The way back, in `count` equal parts."""
        parts = [layer] if self.join is None else np.split(layer, count, self.join)
        return [self.transform.to_source(part) for part in parts]


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


def _sources(path: str, shape: tuple[int, ...], rules: Iterable[Rule]) -> tuple[Rule, list[tuple[str, ...]], list[tuple[str, ...]]] | None:
    """The rule of a path, and for each of its layers the source keys and their copies."""
    for rule in rules:
        match = re.fullmatch(rule.path, path)
        if match:
            keys = rule.keys(match.groups(), shape)
            return rule, keys, rule.copied(match.groups(), len(keys))
    return None


def _first(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"


def to_segjax(
    source: Mapping[str, np.ndarray], layout: Layout, like: Mapping[str, Any], *, name: str = "checkpoint"
) -> dict[str, np.ndarray]:
    """Source arrays -> {segjax path: float32 array} for every path of `like` (flat; leaves with .shape).

    WeightsError: lists unused source keys, parameters without a source and wrong shapes, the first 10 of each with their counts.
    """
    result: dict[str, np.ndarray] = {}
    used: set[str] = set()
    unset: list[str] = []
    wrong: list[str] = []
    for path, leaf in like.items():
        shape = tuple(leaf.shape)
        found = _sources(path, shape, layout.rules)
        if found is None:
            unset.append(f"{path} (no rule)")
            continue
        rule, layers, copies = found
        keys = [key for layer in layers for key in layer]
        used.update(keys)
        used.update(key for layer in copies for key in layer)
        if missing := [key for key in keys if key not in source]:
            unset.append(f"{path} ({', '.join(missing[:3])})")
            continue
        array, problem = _one(source, rule, layers, copies, path, shape)
        if array is None:
            wrong.append(problem)
        else:
            result[path] = array
    unused = [key for key in source if key not in used and not any(re.fullmatch(p, key) for p in layout.ignore)]
    _complain(name, layout.name, unused, unset, wrong)
    return result


def _one(source, rule: Rule, layers, copies, path: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, str]:
    """One parameter as float32, or None and what is wrong with its sources."""
    try:
        parts = [rule.to_segjax([source[key] for key in layer]) for layer in layers]
    except (ValueError, IndexError, TypeError):  # numpy's words for axes that are not there
        return None, f"{layers[0][0]} {source[layers[0][0]].shape} does not fit {path} {shape}"
    expected = shape[rule.levels :] if rule.stacked else shape
    bad = [layer[0] for layer, part in zip(layers, parts, strict=True) if part.shape != expected]
    if bad or (rule.stacked and len(parts) != math.prod(shape[: rule.levels])):
        key = bad[0] if bad else layers[0][0]
        return None, f"{key} {source[key].shape} does not fit {path} {shape}"
    for (first, *_), twins in zip(layers, copies, strict=True):
        for twin in twins:
            if twin in source and not np.array_equal(source[twin], source[first]):
                return None, f"{twin} differs from {first}, of which it should be a copy"
    return np.asarray(np.stack(parts).reshape(shape) if rule.stacked else parts[0], np.float32, order="C"), ""


def to_source(flat: Mapping[str, Any], layout: Layout, *, name: str = "variables") -> dict[str, np.ndarray]:
    """The way back: {segjax path: array} -> {source key: array}, scanned parameters taken apart. WeightsError: a path without a rule."""
    result: dict[str, np.ndarray] = {}
    shares: dict[str, dict[tuple[int, int, int], np.ndarray]] = {}
    without = []
    for path, value in flat.items():
        value = np.asarray(value)
        found = _sources(path, value.shape, layout.rules)
        if found is None:
            without.append(path)
            continue
        rule, layers, copies = found
        stack = value.reshape(-1, *value.shape[rule.levels :]) if rule.stacked else value[None]
        for keys, twins, layer in zip(layers, copies, stack, strict=True):
            for key, part in zip(keys, rule.to_source(layer, len(keys)), strict=True):
                if rule.share is None:
                    result[key] = np.asarray(part, order="C")
                else:
                    shares.setdefault(key, {})[rule.share] = part
            result.update({twin: result[keys[0]] for twin in twins})
    result.update({key: _whole(key, parts, without) for key, parts in shares.items()})
    _complain(name, layout.name, [], without, [])
    return result | (layout.derived(result) if layout.derived else {})


def _whole(key: str, parts: Mapping[tuple[int, int, int], np.ndarray], without: list[str]) -> np.ndarray:
    """The source array of several parameters' shares; a share that no parameter has is added to `without`."""
    ordered = sorted(parts)
    ends, of = [0, *(last for _, last, _ in ordered)], ordered[0][2]
    if ends != [*(first for first, _, _ in ordered), of]:
        without.append(f"{key}, of which only the parts {[(first, last) for first, last, _ in ordered]} of {of} are there")
    return np.concatenate([parts[share] for share in ordered])


def _complain(name: str, layout: str, unused: list[str], unset: list[str], wrong: list[str]) -> None:
    reasons = []
    if wrong:
        reasons.append(f"wrong shapes {_first(wrong)}")
    if unset:
        reasons.append(f"parameters without a source {_first(unset)}")
    if unused:
        reasons.append(f"unused source keys {_first(unused)}")
    if reasons:
        raise WeightsError(
            f"{name}: does not fit the network under layout {layout}: {'; '.join(reasons)}: check architecture, classes and layout"
        )


def load_variables(path: Any, like: Mapping[str, Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Nested variables {"params", "batch_stats"} out of a segjax safetensors file, every leaf checked against `like` (shape and presence).

    like: nested tree of ShapeDtypeStructs or arrays. A leaf whose path (`params/a/kernel`) matches a regular expression of `skip`
        (re.search) keeps the value that `like` has, and the file may hold anything or nothing there: a fresh classifier, say.
    Values come in the type of `like`'s leaf. WeightsError: missing, surplus or misshapen leaves, a damaged file.
    """
    arrays, _ = safetensors_io.read(path)
    skips = [re.compile(pattern) for pattern in skip]
    kept = lambda name: any(pattern.search(name) for pattern in skips)
    wanted = safetensors_io.flatten(like)
    wrong = []
    result = {}
    for name, leaf in wanted.items():
        if kept(name):
            result[name] = leaf
        elif name in arrays:
            if arrays[name].shape != tuple(leaf.shape):
                wrong.append(f"{name} {arrays[name].shape} does not fit {tuple(leaf.shape)}")
            result[name] = arrays[name].astype(leaf.dtype, copy=False)
    unset = [name for name in wanted if name not in result]
    unused = [name for name in arrays if name not in wanted and not kept(name)]
    _complain(str(path), "segjax", unused, unset, wrong)
    return _nested(result, like)


def adapt_classifier(variables: Mapping[str, Any], index: Any, *, classifier: str, axis: Mapping[str, int] | int = -1) -> dict[str, Any]:
    """Cut or reorder the class axis of the final layer: new class k is old class `index[k]`.

    variables: nested arrays. index: int [K_new], each in 0..K_old-1. classifier: regular expression (re.search) over flat paths that
    picks the final layer's kernel and bias. axis: the class axis. Example: 20 Torch7 outputs -> 19 train ids is index 1..19.
    WeightsError: the expression picks nothing, or an index lies outside the classes.
    """
    index = np.asarray(index, np.int64)
    flat = safetensors_io.flatten(variables)
    picked = [path for path in flat if re.search(classifier, path)]
    if not picked:
        raise WeightsError(f"classifier={classifier!r} matches no parameter: the network has {_first(flat)}")
    for path in picked:
        where = axis if isinstance(axis, int) else axis[path.rsplit("/", 1)[-1]]
        classes = flat[path].shape[where]
        if index.size == 0 or index.min() < 0 or index.max() >= classes:
            raise WeightsError(f"{path}: index {index.tolist()} must stay within its {classes} classes")
        flat[path] = np.take(np.asarray(flat[path]), index, axis=where)
    return _nested(flat, variables)


def _nested(flat: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """`unflatten` that keeps the empty collections of `like` (a network without BatchNorm still has `batch_stats`)."""
    return {**{name: {} for name in like}, **safetensors_io.unflatten(flat)}
