"""A network with its weights, from a segjax file or straight from a public checkpoint: what `convert` writes and other verbs open."""

import ast
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from segjax.errors import ConfigError, WeightsError
from segjax.verbs import build, variables
from segjax.weights import engine, layouts, safetensors_io, sources, walk


@dataclasses.dataclass(frozen=True)
class Network:
    """module: Linen module. variables: nested {"params", "batch_stats"} of float32 arrays. spec: what builds the module.

    metadata: of the segjax file (`layout`, `form`, `source_dtypes`, `label_space`, ...). report: counts, for `source.json`.
    """

    module: Any
    variables: Mapping[str, Any]
    spec: Mapping[str, Any]
    metadata: Mapping[str, str]
    report: Mapping[str, Any]


def load(path: str | os.PathLike, *, layout: str = "auto", branch: str = "model", settings: Mapping[str, Any] | None = None) -> Network:
    """Open a segjax file or any known public checkpoint (file or folder), strictly.

    layout: of a public checkpoint; "auto" or a name of `layouts.known()` or package.module:NAME. settings: arguments of the module that
    override what the checkpoint says (a head count that a bare state dict cannot tell, `dtype`). WeightsError names what does not fit.
    """
    metadata = sources.header(path)
    if "model" not in metadata:
        return from_public(path, layout=layout, branch=branch, settings=settings)
    spec = {**_network(metadata), **(settings or {})}
    module, prefix = _module(spec, str(path)), metadata.get("prefix", "")
    shapes = variables.shapes(module)
    found = walk.load_variables(path, {kind: {prefix: tree} if prefix else tree for kind, tree in shapes.items()})
    if prefix:  # converted to be a part of another network; here it is itself
        found = {kind: tree.get(prefix, {}) for kind, tree in found.items()}
    return Network(module, found, spec, metadata, {})


def from_public(
    path: str | os.PathLike, *, layout: str = "auto", branch: str = "model", settings: Mapping[str, Any] | None = None
) -> Network:
    """A public checkpoint (file or folder) as a segjax network, strictly: every source key used, every parameter set."""
    source = sources.read(path, branch=branch)
    public = layouts.recognise(source.arrays, str(path)) if layout == "auto" else public_layout(layout, "--layout")
    spec = {**public.model(source.arrays, source.config), **(settings or {})}
    module = _module(spec, "--layout")
    form = public.layout(source.arrays)
    flat = walk.to_segjax(source.arrays, form, safetensors_io.flatten(variables.shapes(module)), name=str(path))
    back = walk.to_source(flat, form)
    metadata = {"layout": public.name, "form": form.name, "model": json.dumps(spec, sort_keys=True)}
    if source.epsilon is not None:
        metadata["bn_epsilon"] = repr(source.epsilon)
    if odd := {key: kind for key, kind in sources.dtypes(source).items() if key in back}:
        metadata["source_dtypes"] = json.dumps(odd, sort_keys=True)
    report = {
        "layout": public.name,
        "removed": source.removed,
        "model": spec,
        "source_tensors": len(source.arrays),
        "source_tensors_ignored": len(set(source.arrays) - set(back)),
    }
    if source.origin:
        report["hub"] = dict(source.origin)
    return Network(module, safetensors_io.unflatten(flat), spec, metadata, report)


def to_public(flat: Mapping[str, np.ndarray], metadata: Mapping[str, str], public: engine.Public, name: str) -> dict[str, np.ndarray]:
    """segjax arrays under the names, in the form and in the types of a public layout. WeightsError: a path that it has no name for."""
    form = next((form for form in public.forms if form.name == metadata.get("form")), None) or public.layout(flat)
    arrays = walk.to_source(flat, form, name=name)
    kinds = json.loads(metadata.get("source_dtypes", "{}")) if metadata.get("layout") == public.name else {}
    return {key: value.astype(_dtype(kinds[key])) if key in kinds else value for key, value in arrays.items()}


def public_config(metadata: Mapping[str, str], public: engine.Public, name: str) -> dict[str, Any]:
    """The config.json beside the weights in a hub's folder, from the network that a segjax file describes.

    ConfigError: the layout's public code reads none. WeightsError: the file does not say what it is for, or that code has no such network.
    """
    if public.config is None:
        ways = ", ".join(known.name for known in layouts.known().values() if known.config is not None)
        raise ConfigError(f"--to={public.name} is no layout of folders: give --output=FILE.safetensors (folders: {ways})")
    if "model" not in metadata:
        raise WeightsError(f"{name}: does not say which network it is for: convert the public checkpoint again, or write a file")
    spec = _network(metadata)
    module = _module(spec, name)
    fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module) if field.name not in ("parent", "name")}
    return public.config({**fields, **spec, **(module.described() if hasattr(module, "described") else {})})


def public_layout(name: str, flag: str) -> engine.Public:
    """A known layout, or package.module:NAME. ConfigError, which calls the flag by its name, when there is none."""
    if name in layouts.known():
        return layouts.known()[name]
    if ":" not in name:
        raise ConfigError(f"{flag}={name}: expected {', '.join(layouts.known())}, or package.module:NAME")
    found = build.import_string(name, flag)
    if not isinstance(found, engine.Public):
        raise ConfigError(f"{flag}={name}: is a {type(found).__name__}, expected a segjax.weights.engine.Public")
    return found


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`--set KEY=VALUE` flags as keyword arguments; a VALUE that is a Python literal is one, any other is text. ConfigError: no `=`."""
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected KEY=VALUE, e.g. num_heads=(1,2,5,8)")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def label_space(name: str, spec: Mapping[str, Any]) -> str:
    """The checked name of the label space of a network's outputs, "" for none."""
    return build.output_space(name, spec.get("num_classes", 0), "--label-space")[0].name if name else ""


def hashes(path: str | os.PathLike) -> dict[str, str]:
    """sha256 of every file that a checkpoint consists of."""
    return {file.name: safetensors_io.sha256(file) for file in sources.files(path)}


def segjax_file(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Flat arrays and metadata of a segjax file. WeightsError when it is something else."""
    flat, metadata = safetensors_io.read(pathlib.Path(path))
    if not any(key.startswith("params/") for key in flat):
        raise WeightsError(f"{path}: holds no segjax parameters (params/...) but {sorted(flat)[:3]}: convert it without --to")
    return flat, metadata


def _network(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What builds the network of a segjax file; a trained one's also says what it started from, which is left out."""
    return {key: value for key, value in json.loads(metadata["model"]).items() if key not in build.WEIGHT_KEYS}


def _module(spec: Mapping[str, Any], where: str) -> Any:
    dtype = {"dtype": build.compute_dtype(spec["dtype"], f"{where}: dtype")} if "dtype" in spec else {}
    return build.resolve({**build.plain(dict(spec)), **dtype}, where)  # JSON has lists where modules need tuples


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
