"""From whatever a checkpoint file wraps around its network to one flat dict of arrays, and the kind of a file from its first bytes."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import pickles, safetensors_io

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "params", "ResNet101")
"""Keys under which training scripts store the state dict beside meta data, an epoch or an optimizer (`ResNet101`, `model_state`: ProDA)."""
PREFIXES = ("module.", "Scale.", "_orig_mod.")
"""What DataParallel, Caffe conversions and torch.compile put before every key."""
BRANCHES = ("model.", "ema_model.", "imnet_model.", "mic.")
"""The networks of a self-training checkpoint (DAFormer's layout; `mic.teacher.ema_model.` where MIC keeps a teacher of its own). A file
with `model.` alone is a plain wrapper."""
OWN = "model.embed_tokens.weight"
"""A language model of transformers calls its network `model.` by itself; where the output embedding is tied, no other key is beside it."""
CRITERION = "loss."
"""The class weights of a loss that stand beside `model.` (HRNet-Semantic-Segmentation saves both in one module)."""


def unwrap(content: Any, *, branch: str = "model", name: str = "checkpoint") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Flat {key: array} of one network, and the wrappers and prefixes taken off, outermost first.

    Takes {'state_dict'}, {'meta', 'state_dict', 'optimizer'} and the like; strips `module.`, `Scale.`, `_orig_mod.` where every key has it;
    of a checkpoint with several networks it keeps `branch`: model, ema_model, imnet_model or mic.teacher.ema_model. Python numbers beside
    the arrays are dropped.
    WeightsError: no arrays at all, nested dicts of arrays that no wrapper key explains, an absent branch.
    """
    removed: list[str] = []
    while isinstance(content, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        removed.append(inner)
        content = content[inner]
    arrays = {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)} if isinstance(content, Mapping) else {}
    if not arrays:
        keys = [str(key) for key in content][:10] if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{name}: no state dict in it, found {keys}: expected tensors by name, bare or under one of {WRAPPERS}")
    while True:
        network = {key: value for key, value in arrays.items() if not key.startswith(CRITERION)}
        if network and all(key.startswith("model.") for key in network):
            arrays = network
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in arrays)), None)
        if prefix is None and OWN not in arrays and all(key.startswith(BRANCHES) for key in arrays):
            prefix = f"{branch}."
            if not any(key.startswith(prefix) for key in arrays):
                there = [b[:-1] for b in BRANCHES if any(key.startswith(b) for key in arrays)]
                raise WeightsError(f"{name}: has no network {branch!r}: it holds {there}")
        if prefix is None:
            return arrays, tuple(removed)
        removed.append(prefix)
        arrays = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def kind(path: str | os.PathLike) -> str:
    """ "safetensors", "torch" (zip or legacy pickle) or "torch7", from the first bytes. WeightsError: missing, or none of them."""
    path = pathlib.Path(path)
    if path.is_dir() or path.suffix == ".json":
        return "safetensors"
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return "torch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 30:
        return "safetensors"
    if start[:4] in (b"\x03\x00\x00\x00", b"\x04\x00\x00\x00"):
        return "torch7"
    raise WeightsError(f"{path}: begins with {start[:8].hex()}, which is no torch, safetensors or Torch7 file: fetch it again")


def _read_shard(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of one shard of `pytorch_model.bin.index.json`, under their names in the index."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such shard: fetch it again")
    content = pickles.read(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds {type(content).__name__}, expected tensors by name")
    return {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}, {}


def read_state(path: str | os.PathLike, *, branch: str = "model") -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`unwrap` of a torch or safetensors file on disk."""
    found = kind(path)
    if found == "torch7":
        raise WeightsError(f"{path}: a Torch7 file holds a graph, not a state dict: use --layout=enet_torch7")
    if pathlib.Path(path).name.endswith(".bin.index.json"):
        content: Any = safetensors_io.read_sharded(pathlib.Path(path), _read_shard)[0]
    else:
        content = pickles.read(path) if found == "torch" else safetensors_io.read(path)[0]
    return unwrap(content, branch=branch, name=str(path))
