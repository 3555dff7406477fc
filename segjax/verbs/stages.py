"""What a stage of a config is beside its values: the verb that makes it, and the earlier stages that it reads.

A stage names its verb with `verb` (default "train"). That is a module of `segjax/verbs`, or any importable module by its dotted name, with

    check_stage(config, name)                                     raises what is wrong with the values; reads no data, touches no device
    run_stage(config, name, place, places, on_change) -> dict     makes the stage in the folder `place` unless that is done; its done.json

places: the folder of every stage of the run. done.json names the file that stands for the stage's result (`product`).
"""

import importlib
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from segjax.errors import ConfigError
from segjax.verbs.resolve import nearest

TRAIN = "train"
_PLACEHOLDER = re.compile(r"\{stage:([^{}]*)\}")


def verb(config, name: str) -> str:
    """The verb of a stage. ConfigError for a stage that the config does not have."""
    if name not in config.stages:
        raise ConfigError(f"unknown stage {name!r}: {nearest(name, config.stages)}")
    return config.stages[name].get("verb", "") or TRAIN


def module(config, name: str) -> ModuleType:
    """The module that makes a stage. ConfigError names the verbs that make stages."""
    wanted = verb(config, name)
    known = [path.stem.replace("_", "-") for path in sorted(pathlib.Path(__file__).parent.glob("*.py")) if _makes_stages(path)]
    if wanted not in known and "." not in wanted:
        raise ConfigError(f"config.stages.{name}.verb={wanted!r}: {nearest(wanted, known)}, or package.module of your own")
    path = wanted if wanted not in known else f"{__package__}.{wanted.replace('-', '_')}"
    try:
        found = importlib.import_module(path)
    except ImportError as error:
        raise ConfigError(f"config.stages.{name}.verb={wanted!r}: does not import: {error}") from None
    if not all(hasattr(found, function) for function in ("check_stage", "run_stage")):
        raise ConfigError(f"config.stages.{name}.verb={wanted!r}: {path} has no check_stage and run_stage")
    return found


def _makes_stages(path: pathlib.Path) -> bool:
    return "\ndef run_stage(" in path.read_text(encoding="utf-8")


def needs(spec: Mapping[str, Any]) -> dict[str, str]:
    """The stages that a stage reads, each with the key that says so: `start_from`, `networks`, and "{stage:NAME}" in any text."""
    found = {spec["start_from"]: "start_from"} if spec.get("start_from") else {}
    networks = spec.get("networks", ())
    found |= {name: "networks" for name in ((networks,) if isinstance(networks, str) else networks)}
    for key, text in _texts(spec):
        found |= {name: key for name in _PLACEHOLDER.findall(text)}
    return found


def read_by_text(spec: Mapping[str, Any]) -> list[str]:
    """The stages that a stage names as "{stage:NAME}", in order, each once."""
    return list(dict.fromkeys(name for _, text in _texts(spec) for name in _PLACEHOLDER.findall(text)))


def filled(spec: Any, places: Mapping[str, pathlib.Path]) -> Any:
    """Plain values with every "{stage:NAME}" replaced by that stage's folder, where `places` knows it."""
    if isinstance(spec, Mapping):
        return {key: filled(value, places) for key, value in spec.items()}
    if isinstance(spec, tuple | list):
        return tuple(filled(value, places) for value in spec)
    if isinstance(spec, str):
        return _PLACEHOLDER.sub(lambda match: str(places.get(match[1], match[0])), spec)
    return spec


def refuse_unfilled(spec: Any, where: str) -> None:
    """ConfigError when a "{stage:NAME}" is left whose folder nobody has said."""
    for key, text in _texts(spec):
        if found := _PLACEHOLDER.search(text):
            raise ConfigError(
                f"{where}.{key}={text!r}: no finished stage {found[1]} is known here: use `segjax run`, or a --workdir beside its folder"
            )


def _texts(value: Any, key: str = "") -> list[tuple[str, str]]:
    """(dotted key, text) of every text among plain values."""
    if isinstance(value, str):
        return [(key, value)]
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    return [pair for name, part in items for pair in _texts(part, f"{key}.{name}" if key else str(name))]
