"""A stage's folder: what is written there beside checkpoints and metrics, and how a run recognises its own work."""

import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import jax

import segjax
from segjax.errors import ConfigError
from segjax.runtime import workdir
from segjax.verbs import build
from segjax.weights import safetensors_io

CONFIG, INFO, DONE, WEIGHTS, PARTIAL = "config.json", "run.json", "done.json", "weights.safetensors", "partial"
_NEUTRAL = {"mesh", "sharding", "log_every", "checkpoint_every", "evaluate_every", "keep", "data.workers"}
"""Settings that change how a result is reached and not what it is."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def settings(config, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds: the run's name, the stage, the seed, the stage's resolved values and what it was made from (`inputs`).

    "{stage:NAME}" stays as it is in the values: a run that was moved is still the same run, and `inputs` tells what was in that folder.
    """
    about = {"name": config.get("name", ""), "stage": name, "seed": build.seed(config)}
    value = {**about, **build.plain(config.stages[name]), "inputs": inputs}
    return json.loads(json.dumps(value))


def inputs(datasets: Iterable[Any], start: "str | pathlib.Path") -> dict[str, Any]:
    """What a stage was made from besides its settings: the data sets' descriptions, and the sha256 of the weights that it starts from."""
    weights = safetensors_io.sha256(start) if pathlib.Path(start).is_file() else ""
    return {"data": [repr(dataset) for dataset in datasets], "weights": weights}


def stage_inputs(names: Iterable[str], places: Mapping[str, pathlib.Path]) -> dict[str, dict[str, str]]:
    """What stands in `inputs` for earlier stages that a stage's values name: the sha256 of what each has left, as its done.json tells.

    ConfigError: a stage that is not finished.
    """
    found = {}
    for name in names:
        done = read_done(places[name]) if name in places else None
        if done is None:
            raise ConfigError(f"stage {name} is not finished{f' in {places[name]}' if name in places else ''}: `segjax run` makes it first")
        found[name] = {key: value for key, value in done.items() if key.endswith("_sha256")}
    return found


def digest(settings: Mapping[str, Any]) -> str:
    """sha256 over the settings and inputs that matter."""
    kept = {key: value for key, value in flatten(settings).items() if not _neutral(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def prepare(place: pathlib.Path, settings: Mapping[str, Any], mesh: jax.sharding.Mesh, *, on_change: str) -> None:
    """Makes the folder and writes config.json and run.json.

    ConfigError: not writable, in use by another run, or it holds work done with other settings or from other inputs (`on_change`):
    a stage whose start has been trained anew must not pass off its old checkpoints as the new result.
    """
    if jax.process_index() == 0:
        workdir.refuse_if_in_use(place)
    if found := changes(place, settings):
        if on_change == "refuse":
            raise ConfigError(
                f"{place} was made with other settings or inputs ({'; '.join(found[:5])}{'; ...' if len(found) > 5 else ''}): use "
                f"another --workdir, or --on-change=continue (go on with the new ones) or --on-change=restart (the old folder is renamed)"
            )
        if on_change == "restart" and jax.process_index() == 0:
            print(f"{place}: other settings, the old folder is now {_set_aside(place)}", flush=True)
    if jax.process_index() == 0:
        write_json(place / CONFIG, settings)
        write_json(place / INFO, _info(mesh))
        (place / DONE).unlink(missing_ok=True)


def changes(place: pathlib.Path, settings: Mapping[str, Any]) -> list[str]:
    """What differs from the settings of the work that a folder holds; nothing when it holds none."""
    work = ("checkpoints", PARTIAL, DONE, "manifest.jsonl")
    old = read_json(place / CONFIG) if any((place / name).exists() for name in work) else None
    return [] if old is None else difference(old, settings)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for every setting that matters and differs."""
    old, new = flatten(old), flatten(new)
    keys = [key for key in dict.fromkeys([*old, *new]) if not _neutral(key) and old.get(key) != new.get(key)]
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as {"a.b": leaf}."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {path: leaf for key, part in value.items() for path, leaf in flatten(part, f"{prefix}.{key}" if prefix else str(key)).items()}


def of_stage(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    """The folder `NN-name` (or `name`) of a stage within a run's directory."""
    if not workdir.is_dir():
        return None
    found = [path for path in sorted(workdir.iterdir()) if re.fullmatch(rf"(\d+-)?{re.escape(name)}", path.name) and path.is_dir()]
    return found[0] if found else None


def beside(place: pathlib.Path, names: Iterable[str]) -> dict[str, pathlib.Path]:
    """The folders of those stages that lie finished beside a stage's own folder `place`."""
    found = {name: of_stage(place.absolute().parent, name) for name in names}
    return {name: path for name, path in found.items() if path is not None and read_done(path) is not None}


def read_done(place: pathlib.Path) -> dict[str, Any] | None:
    """done.json of a finished stage whose result (`product`, of a trained stage its exported weights) is there, else None."""
    done = read_json(place / DONE)
    return done if done is not None and "digest" in done and (place / done.get("product", WEIGHTS)).is_file() else None


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object, or None when there is none. A damaged file counts as none: it is written again."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes whole or not at all. ConfigError when the folder cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(value, indent=1))
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"--workdir={path.parent}: cannot be written ({error.strerror}): choose a folder with write access") from None


def writable(place: pathlib.Path) -> None:
    """Makes a folder and proves that a file can be written there, before anything is computed for it. ConfigError when it cannot."""
    probe = place / f".probe-{os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror}): choose a folder with write access") from None


def _neutral(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in _NEUTRAL)


def _set_aside(place: pathlib.Path) -> pathlib.Path:
    number = 1
    while (aside := place.with_name(f"old{number}-{place.name}")).exists():
        number += 1
    try:
        return place.rename(aside)
    except OSError as error:
        raise ConfigError(f"{place}: cannot be renamed ({error.strerror}): choose another --workdir") from None


def _info(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    return {
        "command": ["segjax", *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"segjax": segjax.__version__, "python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "devices": [f"{device.platform} {device.device_kind} {device.id}" for device in mesh.devices.flat],
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "git": workdir.commit(),
    }
