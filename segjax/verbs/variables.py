"""What a stage starts from and what it leaves: variables in and out of safetensors, the classifier carried to another label space."""

import functools
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from segjax.data import label_spaces
from segjax.errors import ConfigError, WeightsError
from segjax.nets import initial as initial_of
from segjax.typing import IGNORE
from segjax.verbs import build
from segjax.weights import safetensors_io, walk

Variables = dict[str, Any]
WORDS = "batch_stats/words"
"""Where a network keeps its classes' words (`nets.mask2former`)."""


@functools.lru_cache(maxsize=32)
def shapes(model: Any) -> Variables:
    """{"params", "batch_stats"} of a network as ShapeDtypeStructs (`nets.initial`); nothing is computed."""
    variables = initial_of.shapes(model)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


@functools.lru_cache(maxsize=32)
def classifier_axes(model: Any) -> dict[str, int]:
    """Flat path -> axis of every leaf whose shape follows `num_classes`: the classifiers, whatever they are called; words are none."""
    here = safetensors_io.flatten(shapes(model))
    lists = {name: (*kept, kept[-1]) for name in ("synonyms", "seen") if (kept := getattr(model, name, ()))}
    more = safetensors_io.flatten(shapes(model.clone(num_classes=model.num_classes + 1, **lists)))
    axes = {}
    for path, leaf in here.items():
        if path == WORDS:
            continue
        changed = [axis for axis, size in enumerate(leaf.shape) if more[path].shape[axis] != size]
        if changed:
            axes[path] = changed[0]
    return axes


def outputs_of(path: pathlib.Path, model: Any) -> tuple[int, str]:
    """(number of outputs, label space's name or "") of a weights file made for this architecture; where words alone are the classifier,
    the network's own number. WeightsError: no classifier."""
    arrays, metadata = safetensors_io.read(path)
    sizes = lambda leaves: {name: leaf.shape for name, leaf in leaves.items()}
    if sizes(arrays) == sizes(safetensors_io.flatten(shapes(model))):  # of exactly this network: no other is traced beside it
        return model.num_classes, metadata.get("label_space", "")
    axes = classifier_axes(model)
    if not axes and getattr(model, "reads_words", False):
        return model.num_classes, metadata.get("label_space", "")
    counts = {arrays[name].shape[axis] for name, axis in axes.items() if name in arrays and arrays[name].ndim > axis}
    if len(counts) != 1:
        raise WeightsError(f"{path}: holds no classifier of {type(model).__name__} ({', '.join(axes)}): is it for another network?")
    return counts.pop(), metadata.get("label_space", "")


def load(path: pathlib.Path, model: Any) -> Variables:
    """Variables of a file made for exactly this network. WeightsError lists what does not fit."""
    return walk.load_variables(path, shapes(model))


def initial(stage: build.Stage, space: label_spaces.LabelSpace, start: pathlib.Path | None = None) -> Variables | None:
    """The variables that a stage starts from, or None for fresh ones.

    start: weights of an earlier stage, else the config's `model.weights`. space: what the stage trains for. A file with another label
    space has its classifier rows chosen by name (`label_spaces.mapping`); `model.classifier="fresh"` draws the classifier anew, and
    whole parts that the file lacks (a head over an ImageNet backbone; parts are what stands first in a path, `backbone`, `decode_head`).
    WeightsError: missing or misfitting file. ConfigError: a class has no counterpart in the file's label space.
    """
    spec, where = stage.spec["model"], f"config.stages.{stage.name}.model"
    path = start or (pathlib.Path(spec["weights"]) if spec.get("weights") else None)
    if path is None:
        return None
    if not path.exists():
        raise WeightsError(f"{where}.weights={str(path)!r}: no such file: make it with `segjax convert`, or set '' for fresh ones")
    if not hasattr(stage.model, "num_classes"):  # a translator
        return load(path, stage.model)
    how = spec.get("classifier", "map")
    if how not in ("map", "fresh"):
        raise ConfigError(f"{where}.classifier={how!r}: expected 'map' (carry the classes over by name) or 'fresh' (draw them anew)")
    if how == "fresh" and start is None:
        return _with_fresh_classifier(path, stage)
    count, named = outputs_of(path, stage.model)
    old, first = build.output_space((start is None and spec.get("weights_space")) or named, count, str(path))
    if count == stage.model.num_classes and old == space:
        return load(path, stage.model)
    if getattr(stage.model, "reads_words", False):
        raise ConfigError(f"{path}: has words of {old.name}, and {space.name} needs its own: start from a backbone ({where}.weights)")
    index = label_spaces.mapping(space, old).astype(np.int64)
    lost = [name for name, where_from in zip(space.classes, index, strict=True) if where_from == IGNORE]
    if lost:
        raise ConfigError(f"{path}: {old.name} has no counterpart of {', '.join(lost)} ({space.name}): set {where}.classifier='fresh'")
    source = load(path, stage.model.clone(num_classes=count))
    axes = classifier_axes(stage.model)
    for leaf, axis in axes.items():
        source = walk.adapt_classifier(source, index + first, classifier=f"^{re.escape(leaf)}$", axis=axis)
    return source


def gather(state: Any) -> Variables:
    """The variables that `predict` uses (the averaged copy where the method keeps one) on this host, whole even when sharded."""
    variables = state.ema_variables
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(variables, tiled=True)
    return jax.device_get(variables)


def into_state(stage: build.Stage, variables: Variables, batch_shapes: Mapping[str, Any]) -> Any:
    """A state for `predict` alone: these variables, and zeros where only training looks (a compiled predict never transfers those)."""
    abstract = jax.eval_shape(stage.method.init, jax.random.key(0), batch_shapes)
    state = abstract.with_variables(variables)
    fill = lambda leaf: leaf if not isinstance(leaf, jax.ShapeDtypeStruct) else _zeros(leaf)
    return jax.tree.map(fill, state, is_leaf=lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


def export(path: pathlib.Path, variables: Variables, *, space: str, metadata: Mapping[str, str]) -> str:
    """Writes variables as safetensors, with the label space of their outputs, and returns the file's sha256."""
    safetensors_io.write(path, safetensors_io.flatten(variables), {"label_space": space, **metadata})
    return safetensors_io.sha256(path)


def drawn(stage: build.Stage, parts: Collection[str] | None = None) -> Variables:
    """Fresh variables of a stage's network, by its seed. parts: their flat paths; the others are shapes and nothing draws them."""
    like = safetensors_io.flatten(shapes(stage.model))
    wanted = set(like if parts is None else parts)

    def draw(key):
        found = initial_of.initial(stage.model, key)
        return {path: leaf for path, leaf in safetensors_io.flatten(found).items() if path in wanted}

    found = jax.device_get(jax.jit(draw)(jax.random.key(stage.seed)))
    return {"params": {}, "batch_stats": {}, **safetensors_io.unflatten({**like, **found})}


def _with_fresh_classifier(path: pathlib.Path, stage: build.Stage) -> Variables:
    """The file's variables, with the classifier drawn anew, and so every part of the network that the file has nothing of: a head, say."""
    names = safetensors_io.flatten(shapes(stage.model))
    part = lambda name: "/".join(name.split("/")[:2])
    absent = {part(name) for name in names} - {part(name) for name in safetensors_io.read(path)[0]}
    skip = [f"^{re.escape(leaf)}$" for leaf in classifier_axes(stage.model)] + [f"^{re.escape(name)}(/|$)" for name in sorted(absent)]
    fresh = drawn(stage, [name for name in names if any(re.search(pattern, name) for pattern in skip)])
    return walk.load_variables(path, fresh, skip=skip)


def _zeros(leaf: jax.ShapeDtypeStruct) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), leaf.shape) if leaf.shape else jax.random.key(0)
    return np.zeros(leaf.shape, leaf.dtype)
