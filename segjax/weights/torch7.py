"""Torch7 (Lua) network files as one flat dict of arrays, through the `torchfile` package (extra `segjax[convert]`)."""

import os
import pathlib
from typing import Any

import numpy as np

from segjax.errors import WeightsError

ARRAYS = ("weight", "bias", "running_mean", "running_var")
CONTAINERS = ("Sequential", "ConcatTable")
INSTALL = "pip install 'segjax[convert]'"


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], float]:
    """Flat {"4.0.0.3.weight": float array} of an `nn` graph, keys being places in the nested containers from 0, and the BatchNorm epsilon.

    Torch7's SpatialDropout multiplies by (1 - p) at evaluation, where everyone else multiplies by nothing. The factor is folded, exactly,
    into scale and bias of the BatchNorm right before it; a dropout anywhere else is an error. Lua functions are never run.
    WeightsError: torchfile is not installed (the command is named), a damaged file, several epsilons in one network.
    """
    try:
        import torchfile
    except ImportError as error:
        raise WeightsError(f"{path}: reading Torch7 files needs the torchfile package: {INSTALL}") from error
    path = pathlib.Path(path)
    try:
        graph = torchfile.load(str(path))
        arrays: dict[str, np.ndarray] = {}
        epsilons: set[float] = set()
        _walk(graph, (), arrays, epsilons)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # torchfile checks nothing, so a damaged file can fail anywhere in it
        raise WeightsError(f"{path}: not a complete Torch7 network ({type(error).__name__}: {error}): fetch it again") from error
    if len(epsilons) != 1:
        raise WeightsError(f"{path}: has BatchNorm epsilons {sorted(epsilons)}: expected one for the whole network")
    return arrays, epsilons.pop()


def _kind(node: Any) -> str:
    name = node.torch_typename()
    return name.decode().rsplit(".", 1)[-1]


def _walk(node: Any, place: tuple[int, ...], arrays: dict[str, np.ndarray], epsilons: set[float]) -> None:
    """Collect the arrays below `node` under dotted places."""
    kind, key = _kind(node), ".".join(map(str, place))
    if kind in CONTAINERS:
        children = node[b"modules"]
        for n, child in enumerate(children):
            if _kind(child).endswith("Dropout"):
                before = _kind(children[n - 1]) if n and kind == "Sequential" else "nothing"
                _fold_dropout(float(child[b"p"]), before, ".".join(map(str, (*place, n - 1))), arrays)
            else:
                _walk(child, (*place, n), arrays, epsilons)
        return
    if kind.endswith("BatchNormalization"):
        epsilons.add(float(node[b"eps"]))
    for name in ARRAYS:
        value = node._obj.get(name.encode())
        if isinstance(value, np.ndarray) and value.size:
            arrays[f"{key}.{name}"] = value


def _fold_dropout(rate: float, before: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    if not before.endswith("BatchNormalization"):
        raise WeightsError(f"a dropout after {before} at {key}: its evaluation factor {1 - rate:g} folds into a BatchNorm only")
    for name in ("weight", "bias"):
        arrays[f"{key}.{name}"] = arrays[f"{key}.{name}"] * np.float32(1 - rate)
