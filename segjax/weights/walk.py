"""Arrays onto a network's tree and back, strictly: public keys through a layout, segjax's own files, a class axis cut or reordered.

The tree of the actual network (`jax.eval_shape` of its init) decides which parameters exist. Nothing is skipped in silence: every source
key is used or matches an `ignore` pattern, every parameter is set, every shape is checked; whatever is left is listed in one WeightsError.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import safetensors_io
from segjax.weights.engine import Layout, Rule


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
    shares: dict[str, dict[tuple[int, int | None, int | None], np.ndarray]] = {}
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


def _whole(key: str, parts: Mapping[tuple[int, int | None, int | None], np.ndarray], without: list[str]) -> np.ndarray:
    """The source array of several parameters' shares; a share that no parameter has is added to `without`."""
    ordered = sorted(parts, key=lambda share: (share[0] < 0, share[0]))
    ends, of = [0, *(last for _, last, _ in ordered)], ordered[0][2]
    if ends != [*(first for first, _, _ in ordered), of]:
        without.append(f"{key}, of which only the parts {[(first, last) for first, last, _ in ordered]} of {of} are there")
    return np.concatenate([parts[share] for share in ordered])


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


def _sources(path: str, shape: tuple[int, ...], rules: Iterable[Rule]) -> tuple[Rule, list[tuple[str, ...]], list[tuple[str, ...]]] | None:
    """The rule of a path, and for each of its layers the source keys and their copies."""
    for rule in rules:
        match = re.fullmatch(rule.path, path)
        if match:
            keys = rule.keys(match.groups(), shape)
            return rule, keys, rule.copied(match.groups(), len(keys))
    return None


def _nested(flat: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """`unflatten` that keeps the empty collections of `like` (a network without BatchNorm still has `batch_stats`)."""
    return {**{name: {} for name in like}, **safetensors_io.unflatten(flat)}


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


def _first(names: Iterable[str]) -> str:
    names = sorted(names)
    return f"{len(names)}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
