"""From a path as people have it (a file, or a folder as the public hubs lay it out) to arrays and the config beside them."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import hub, safetensors_io, torch7, wrappers

WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "model.fp16.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.non_ema.safetensors",
)
"""Names under which the hubs' folders hold one network's weights, the preferred first."""
CONFIGS = ("config.json", "open_clip_config.json")
TOGETHER = (("enc_s.pth", "dec_s2t.pth"),)
"""Files of a folder that are one network together (DiGA's translator): each file's name stands before its keys."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A public checkpoint in memory. path: the file that was read. config: the JSON beside it, {} where there is none.

    removed: wrappers and prefixes that were taken off the keys, outermost first. epsilon: of the BatchNorms, where the file says (Torch7).
    origin: repo, revision and commit of a model of the hub.
    """

    path: pathlib.Path
    arrays: Mapping[str, np.ndarray]
    config: Mapping[str, Any]
    removed: tuple[str, ...] = ()
    epsilon: float | None = None
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read(path: str | os.PathLike, *, branch: str = "model") -> Source:
    """Read a torch pickle (executing nothing), safetensors (also sharded, or an index), Torch7 file, or a folder that holds one.

    path: here, or a model of the hub (`hub.parse`), which is fetched if it is not in the cache yet.
    branch: which network of a self-training checkpoint (`wrappers.unwrap`). WeightsError: nothing there, damaged, or not a state dict.
    """
    place, origin = local(path)
    if parts := _together(place):
        return _joined(place, parts, branch)
    file = locate(place)
    config = _config(file) if place.is_dir() or file.suffix in (".safetensors", ".json", ".bin") else {}
    if wrappers.kind(file) == "torch7":
        arrays, epsilon = torch7.read(file)
        return Source(file, arrays, config, epsilon=epsilon)
    arrays, removed = wrappers.read_state(file, branch=branch)
    return Source(file, arrays, config, removed, origin=origin)


def local(path: str | os.PathLike) -> tuple[pathlib.Path, dict[str, str]]:
    """A path as it is, a model of the hub as its folder (or file) in the cache; and {} or the model's repo, revision and commit."""
    if hub.parse(path) is None:
        return pathlib.Path(path), {}
    fetched = hub.fetch(os.fspath(path), WEIGHTS)
    return fetched.path, fetched.origin


def locate(path: str | os.PathLike) -> pathlib.Path:
    """The weights file of a folder (the first of `WEIGHTS` there) or of a model of the hub, or the path itself.

    WeightsError: nothing there.
    """
    path, _ = local(path)
    if path.is_dir():
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if found is None:
            there = sorted(entry.name for entry in path.iterdir())[:10]
            raise WeightsError(f"{path}: holds {there or 'nothing'}, expected one of {', '.join(WEIGHTS)}: name the weights file itself")
        return found
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or folder")
    return path


def files(path: str | os.PathLike) -> list[pathlib.Path]:
    """Every file that `read` opens for its arrays: one, an index and its shards, or those that are one network together."""
    if parts := _together(local(path)[0]):
        return parts
    file = locate(path)
    if not file.name.endswith(".index.json"):
        return [file]
    return [file, *(file.parent / shard for shard in sorted(set(safetensors_io.weight_map(file).values())))]


def _together(place: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder that are one network together, [] where there are none."""
    return next(([place / name for name in names] for names in TOGETHER if all((place / name).is_file() for name in names)), [])


def _joined(place: pathlib.Path, parts: list[pathlib.Path], branch: str) -> Source:
    """One network of several files; the `model.` that these networks' own names begin with is no wrapper."""
    arrays: dict[str, np.ndarray] = {}
    for file in parts:
        found, removed = wrappers.read_state(file, branch=branch)
        own = "model." if "model." in removed else ""
        arrays |= {f"{file.stem}.{own}{key}": value for key, value in found.items()}
    return Source(place, arrays, {})


def _config(file: pathlib.Path) -> dict[str, Any]:
    """The config beside a weights file; open_clip's own before transformers' where the weights are open_clip's (some folders hold both)."""
    folder = file.parent
    for name in CONFIGS[::-1] if file.name.startswith("open_clip") else CONFIGS:
        if (folder / name).is_file():
            try:
                content = json.loads((folder / name).read_text())
            except ValueError as error:
                raise WeightsError(f"{folder / name}: not JSON ({error}): fetch it again") from error
            if not isinstance(content, dict):
                raise WeightsError(f"{folder / name}: holds {type(content).__name__}, expected an object of settings")
            return content
    return {}


def dtypes(source: Source) -> dict[str, str]:
    """Key -> type of every tensor that is not float32, so that it can be written back as it was."""
    return {key: str(value.dtype) for key, value in source.arrays.items() if value.dtype != np.float32}


def header(path: str | os.PathLike) -> dict[str, str]:
    """Metadata of a safetensors file, {} for any other kind: without reading a tensor."""
    path = pathlib.Path(path)
    return safetensors_io.metadata(path) if path.is_file() and wrappers.kind(path) == "safetensors" and path.suffix != ".json" else {}
