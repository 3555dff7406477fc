"""Weights that a stage's method reads and never trains: `frozen={"translator": FILE, ...}` of a stage, restored from their files by hash.

A file is a segjax network, a public checkpoint, or arrays that an earlier stage has left (class centroids).
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import ConfigError, WeightsError
from segjax.typing import Frozen
from segjax.verbs import build, networks
from segjax.weights import safetensors_io, sources

CONTENT = "content"
"""Metadata key of a file whose arrays are no network's; its value says what they are."""


def files(stage: build.Stage) -> dict[str, pathlib.Path]:
    """The files of a stage's frozen weights by name. ConfigError: not a mapping of texts. WeightsError: no such file."""
    spec, where = stage.spec.get("frozen", {}), f"config.stages.{stage.name}.frozen"
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}={spec!r}: expected names with files, e.g. {{'translator': 'weights/translator.safetensors'}}")
    found = {}
    for name, path in spec.items():
        if not isinstance(path, str) or not path:
            raise ConfigError(f"{where}.{name}={path!r}: expected a weights file")
        found[name] = pathlib.Path(path)
        if not found[name].exists():
            raise WeightsError(f"{where}.{name}={path!r}: no such file: make it with `segjax convert`, or by the stage that trains it")
    return found


def hashes(paths: Mapping[str, pathlib.Path]) -> dict[str, dict[str, str]]:
    """sha256 of every file: what a stage's digest knows of its frozen weights."""
    return {name: networks.hashes(path) for name, path in paths.items()}


def load(paths: Mapping[str, pathlib.Path]) -> Frozen:
    """{name: variables of a network {"params", "batch_stats"}, or arrays by their names}; () where there are none. WeightsError."""
    return {name: _load(path) for name, path in paths.items()} or ()


def _load(path: pathlib.Path) -> Any:
    if CONTENT in sources.header(path):
        return safetensors_io.unflatten(safetensors_io.read(path)[0])
    return dict(networks.load(path).variables)
