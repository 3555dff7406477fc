"""From a config's plain values to objects: the only place that opens a ConfigDict and resolves import strings.

A part of a config is `{"make": "package.module:name", **keyword arguments}`. Everything below this floor takes plain keyword arguments.
Impossible combinations raise here, before a device is touched.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from segjax.data import label_spaces, mixture, pipeline, stream
from segjax.errors import ConfigError, DataError
from segjax.runtime import mesh as meshes
from segjax.runtime import optim
from segjax.typing import Method
from segjax.verbs import stages, zero_shot
from segjax.verbs.resolve import call as call  # these four are used through `build` by the other verbs
from segjax.verbs.resolve import import_string as import_string
from segjax.verbs.resolve import nearest
from segjax.verbs.resolve import plain as plain
from segjax.verbs.resolve import resolve as resolve

WEIGHT_KEYS = ("weights", "weights_space", "classifier", "words")
"""Keys of a stage's `model` that say what it starts from; the others are the module's attributes."""
EVALUATE_KEYS = ("size", "split", "score", "scales", "flip", "combine", "window", "stride", "window_batch", "upsample")
"""Keys of a stage's `evaluate.NAME` that say how to score; the others are the data set's arguments."""

BATCH_KEYS = ("workers", "target_batch_size")
"""Keys of a stage's `data` that say how batches are read; the others say what their elements are (`pipeline.streams`)."""
PART_KEYS = ("weight", "repeat", "sampling")
"""Keys of a mixture's part that say how much of it is drawn; the others are the data set's arguments."""

OPTIONAL_KEYS = ("verb", "start_from", "frozen", "mesh", "sharding", "keep", "log_every", "checkpoint_every", "evaluate_every")
"""Keys that a stage may leave out."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a config, built as far as it goes without data or devices.

    spec: the stage's plain values. model: Linen module. method: the three pure functions over that model.
    """

    name: str
    seed: int
    spec: Mapping[str, Any]
    model: Any
    method: Method

    def with_classes(self, count: int) -> "Stage":
        """The same stage over a network with `count` outputs (a public checkpoint is evaluated with its own outputs)."""
        if count == self.model.num_classes:
            return self
        spec = {**self.spec, "model": {**self.spec["model"], "num_classes": count}}
        return _assemble(self.name, self.seed, spec)


def stage_names(config) -> tuple[str, ...]:
    """The stages in the order in which `segjax run` walks them. ConfigError when `order` and `stages` disagree."""
    order, known = tuple(config.get("order", ())), tuple(config.get("stages", {}))
    if not order:
        raise ConfigError(f"config.order is empty: name the stages to run, known: {', '.join(known) or 'none'}")
    for name in order:
        if name not in known:
            raise ConfigError(f"config.order names the stage {name!r}: {nearest(name, known)}")
    for position, name in enumerate(order):
        before = order[:position]
        for needed, key in stages.needs(plain(config.stages[name])).items():
            if needed not in before:
                raise ConfigError(f"config.stages.{name}.{key}={needed!r}: expected an earlier stage: {', '.join(before) or 'none'}")
    return order


def stage(config, name: str, places: Mapping[str, pathlib.Path] | None = None) -> Stage:
    """Builds the network and method of a stage that is trained. places: the folders of earlier stages that its values name.

    ConfigError names the key that is wrong, or the verb that makes a stage of another kind.
    """
    if (verb := stages.verb(config, name)) != stages.TRAIN:
        raise ConfigError(f"stage {name} has no network of its own, it is made by `segjax {verb}`: pass --stage with one that is trained")
    return _assemble(name, seed(config), stages.filled(plain(config.stages[name]), places or {}))


def seed(config) -> int:
    """The run's seed. ConfigError when it is none."""
    found = config.get("seed", 0)
    if not isinstance(found, int) or not 0 <= found < 2**32:
        raise ConfigError(f"config.seed={found!r}: expected a whole number from 0 to {2**32 - 1}")
    return found


def last_trained(config) -> str:
    """The last stage that is trained: what `evaluate` and `predict` take when no stage is named. ConfigError when there is none."""
    trained = [name for name in stage_names(config) if stages.verb(config, name) == stages.TRAIN]
    if not trained:
        raise ConfigError(f"none of the stages {', '.join(stage_names(config))} is trained, so there is no network")
    return trained[-1]


def dataset(spec: Mapping[str, Any], where: str, *, scored: bool = False) -> Any:
    """A data set of a config; the `parts` of a mixture and a `dataset` within a data set are built too. In an `evaluate` entry (`scored`),
    keys that steer the scoring reach the maker only if it takes them too.

    ConfigError: a key that the maker does not take. DataError: no example.
    """
    if scored and "make" in spec:
        parameters = inspect.signature(import_string(spec["make"], where)).parameters
        spec = {key: value for key, value in spec.items() if key not in EVALUATE_KEYS or key in parameters}
    stages.refuse_unfilled(spec, where)
    if isinstance(spec.get("dataset"), Mapping):
        spec = {**spec, "dataset": dataset(spec["dataset"], f"{where}.dataset")}
    if "parts" in spec:
        spec = {**spec, "parts": tuple(_part(part, f"{where}.parts[{number}]") for number, part in enumerate(spec["parts"]))}
    found = resolve(spec, where)
    if len(found) == 0:
        raise DataError(f"{where}: {found!r} is empty, expected at least one example: check its folder, split, length and filters")
    return found


def _part(spec: Mapping[str, Any], where: str) -> mixture.Part:
    """One part of a mixture: a data set's spec with what `mixture.Part` adds to it."""
    own = {key: spec[key] for key in PART_KEYS if spec.get(key) is not None}
    if own.get("sampling"):
        own["sampling"] = resolve(own["sampling"], f"{where}.sampling")
    found = dataset({key: value for key, value in spec.items() if key not in PART_KEYS}, where)
    return call(mixture.Part, {"dataset": found, **own}, where)


class TrainingData(NamedTuple):
    """A stage's data sets (target may be None), and the streams of elements that are drawn from them."""

    source: Any
    target: Any
    streams: list[stream.Stream]


def training_data(stage: Stage) -> TrainingData:
    """The data of a stage, checked against its network and crops. ConfigError or DataError names the key."""
    where, data = f"config.stages.{stage.name}.data", stage.spec["data"]
    source = dataset(data["source"], f"{where}.source")
    target = dataset(data["target"], f"{where}.target") if data.get("target") else None
    classes = source.label_space.num_classes
    if getattr(stage.model, "num_classes", classes) != classes:  # a translator has none
        raise ConfigError(
            f"config.stages.{stage.name}.model.num_classes={stage.model.num_classes} but data.source is {source.label_space.name} "
            f"with {classes} classes: set num_classes={classes}, or another label_space"
        )
    if data.get("target_labels") and target is not None and target.label_space.classes != source.label_space.classes:
        raise DataError(
            f"{where}.target: {target!r} has labels of {target.label_space.name}, but data.source is {source.label_space.name}: "
            "one network learns both, so give them one label_space"
        )
    options = {key: value for key, value in data.items() if key not in BATCH_KEYS}
    options["sampling"] = resolve(data["sampling"], f"{where}.sampling") if data.get("sampling") else None
    return TrainingData(source, target, call(pipeline.streams, {**options, "source": source, "target": target, "seed": stage.seed}, where))


def make_mesh(stage: Stage) -> jax.sharding.Mesh:
    """The devices of a stage. ConfigError when its `mesh` asks for what is not there."""
    return call(meshes.make_mesh, stage.spec.get("mesh", {}), f"config.stages.{stage.name}.mesh")


def sharding_overrides(stage: Stage) -> tuple[tuple[str, PartitionSpec], ...]:
    """The stage's `sharding`, pairs of (regex over parameter paths, mesh axis or None a dimension), as the loop takes them."""
    return overrides(stage.spec.get("sharding", ()), f"config.stages.{stage.name}.sharding")


def overrides(pairs: Iterable[Any], where: str) -> tuple[tuple[str, PartitionSpec], ...]:
    """Such pairs of plain values. ConfigError: something that is no pair."""
    pairs = tuple(pairs)
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise ConfigError(f'{where}: {pair!r} is no pair like ("conv2/kernel", (None, None, None, "fsdp"))')
    return tuple((pattern, PartitionSpec(*axes)) for pattern, axes in pairs)


def check_batch(stage: Stage, mesh: jax.sharding.Mesh) -> None:
    """ConfigError when the batch cannot be dealt out evenly to the devices of the mesh."""
    devices, sizes = mesh.size, {"batch_size": stage.spec["batch_size"]}
    if (targets := stage.spec["data"].get("target_batch_size")) and stage.spec["data"].get("target"):
        sizes["data.target_batch_size"] = targets
    for key, batch in sizes.items():
        if batch % devices:
            fit = max(count for count in range(1, devices + 1) if all(size % count == 0 for size in sizes.values()))
            raise ConfigError(
                f"config.stages.{stage.name}.{key}={batch} is not divisible by the {devices} devices of the mesh: "
                f"use {key.rpartition('.')[2]}={-(-batch // devices) * devices}, or {fit} of the devices with mesh.data={fit}"
            )


def output_space(name: str, outputs: int, where: str) -> tuple[label_spaces.LabelSpace, int]:
    """The label space of a network with `outputs` outputs and the output that is its class 0.

    name: a label space, or "" to go by the count (11, 13, 16 and 19 are unambiguous here). One output more than the space has classes
    means that output 0 is "unlabelled", as in the Torch7 ENet (20 for Cityscapes). ConfigError when they do not fit together.
    """
    counts = {space.num_classes: space.name for space in label_spaces.LABEL_SPACES.values()}
    name = name or counts.get(outputs) or counts.get(outputs - 1, "")
    if not name:
        raise ConfigError(f"{where}: a network with {outputs} outputs: name its label space with model.weights_space")
    space = label_spaces.get(name)
    first = outputs - space.num_classes
    if first not in (0, 1):
        raise ConfigError(
            f"{where}: {outputs} outputs do not fit {space.name} with {space.num_classes} classes (+ 1 if output 0 is unlabelled)"
        )
    return space, first


def _assemble(name: str, seed: int, spec: Mapping[str, Any]) -> Stage:
    where = f"config.stages.{name}"
    _check_spec(spec, where)
    if words := spec["model"].get("words"):
        spec = {**spec, "model": {**spec["model"], "synonyms": zero_shot.of_model(words, f"{where}.model.words").counts}}
    model = network({key: value for key, value in spec["model"].items() if key not in WEIGHT_KEYS}, f"{where}.model")
    # The schedule ends with the stage unless the config says otherwise (FDA decays over 150 000 steps and stops at 100 000).
    optimizer = call(optim.make_optimizer, {"total_steps": spec["steps"], **spec["optimizer"]}, f"{where}.optimizer")
    parts = {key: network(part, f"{where}.method.{key}") if is_network(part) else part for key, part in spec["method"].items()}
    method = resolve(parts, f"{where}.method", model=model, optimizer=optimizer)
    return Stage(name, seed, spec, model, method)


def is_network(part: Any) -> bool:
    """Whether a value of a method is a network that it reads, which is built before: a segmenter whose weights are frozen, say."""
    return isinstance(part, Mapping) and "make" in part


def network(spec: Mapping[str, Any], where: str) -> Any:
    """The module of a config's `{"make": ..., **arguments}`, `dtype` by name. ConfigError."""
    dtype = {"dtype": compute_dtype(spec["dtype"], f"{where}.dtype")} if "dtype" in spec else {}
    return resolve({**spec, **dtype}, where)


def _check_spec(spec: Mapping[str, Any], where: str) -> None:
    needed = ("method", "model", "optimizer", "steps", "batch_size", "data", "evaluate")
    for key in spec:
        if key not in (*needed, *OPTIONAL_KEYS):
            raise ConfigError(f"{where}.{key}: a stage has no such key: {nearest(key, (*needed, *OPTIONAL_KEYS))}")
    missing = [key for key in needed if key not in spec]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: a stage has {', '.join(needed)}")
    for key in ("steps", "batch_size"):
        if not isinstance(spec[key], int) or spec[key] < 1:
            raise ConfigError(f"{where}.{key}={spec[key]!r}: expected a whole number, 1 or more")
    data = spec["data"]
    for key, kind in (("crop", int), ("scale", int | float)):
        value = data.get(key, (1, 1) if key == "scale" else "nothing")
        if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(v, kind) and v > 0 for v in value):
            raise ConfigError(f"{where}.data.{key}={value!r}: expected two positive numbers, e.g. (256, 384)")
    if "source" not in data:
        raise ConfigError(f"{where}.data lacks source: a labelled data set is needed")


def compute_dtype(name: str, where: str) -> Any:
    """The type of that name. ConfigError on one that no network computes in."""
    known = ("float32", "bfloat16", "float16")
    if name not in known:
        raise ConfigError(f"{where}={name!r}: {nearest(str(name), known)}")
    return jnp.dtype(name)
