"""What `segjax bench` measures: one module a workload, named by itself or, a fork's own, by its import string `package.module:make`.

`make(devices, **sizes)` returns a Workload. `--set key=value` changes a size.
"""

import ast
import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segjax.errors import ConfigError
from segjax.verbs import resolve

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """step: (carry, inputs) -> (carry, outputs), jittable; the carry is donated. start: the first carry. draw: one set of inputs, a flat
    dict of arrays whose first axis is split over the devices. reference: (carry, inputs) -> what outputs of these names must be, in a
    plain form; tolerance: largest difference, relative to each one's largest value, one for all or by name (and "others"). rows: images,
    pairs or pixels a step of all devices.

    sizes: what the row says of it. dtype: what products are computed in. peer: module of scripts/peers that does the same in torch, which
    reads the same inputs and `sizes`; adopt: (carry, the peer's weights by name) -> carry with them; compared: (carry, inputs) -> what is
    held against the peer's own answer, default the step's outputs.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    draw: Callable[[np.random.Generator], Arrays]
    reference: Callable[[Any, Any], Any]
    tolerance: float | Mapping[str, float]
    rows: int
    sizes: Mapping[str, Any]
    start: Callable[[], Any] = tuple
    dtype: str = "float32"
    peer: str = ""
    adopt: Callable[[Any, Arrays], Any] | None = None
    compared: Callable[[Any, Any], Any] | None = None


def names() -> list[str]:
    """The workloads of this package."""
    return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("*.py") if "\ndef make(" in path.read_text(encoding="utf-8"))


def build(name: str, devices: int, sizes: Mapping[str, Any]) -> Workload:
    """The workload `name` for so many devices. ConfigError: unknown, or a size that it does not have."""
    if ":" not in name and name not in names():
        raise ConfigError(f"--workload={name}: {resolve.nearest(name, names())}, or package.module:make of your own")
    path = name if ":" in name else f"{__name__}.{name}:make"
    make = resolve.import_string(path, "--workload")
    known = [key for key in inspect.signature(make).parameters if key != "devices"]
    for key in sizes:
        if key not in known:
            raise ConfigError(f"--set={key}=...: {name} has no such size: {resolve.nearest(key, known)}")
    return make(devices=devices, **sizes)


def read_sizes(pairs: Sequence[str]) -> dict[str, Any]:
    """["height=512", "dtype=bfloat16"] -> {"height": 512, "dtype": "bfloat16"}. ConfigError for a text that is no pair."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--set={pair}: expected KEY=VALUE, e.g. --set height=512")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found
