"""Flat dicts of arrays to and from safetensors files, single or sharded, with metadata and a sha256."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from segjax.errors import WeightsError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DIGEST = "segjax_sha256"  # metadata of the files written here: sha256 of the header without it, then of the tensors' bytes
_CODES = {
    **{
        np.dtype(f"<{kind}{size}"): f"{kind.upper()}{8 * size}"
        for kind, sizes in (("f", (2, 4, 8)), ("i", (2, 4, 8)), ("u", (2, 4, 8)))
        for size in sizes
    },
    np.dtype("i1"): "I8",
    np.dtype("u1"): "U8",
    np.dtype("?"): "BOOL",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> {"params/a/kernel": leaf}, sorted by path. Leaves are anything that is not a mapping."""
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        value = tree[name]
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def sha256(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's bytes, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def write(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays under their names, through a temporary file that replaces `path` whole or not at all.

    `metadata` maps text to text and lands in the file's header. Device arrays are fetched to the host. Equal contents give equal bytes,
    so a sha256 names the contents. WeightsError: a type that safetensors does not know, a full disk, no access.
    """
    path = pathlib.Path(path)
    # Not np.ascontiguousarray: it would turn a scalar into a vector of one.
    host = {name: np.asarray(value, order="C") for name, value in sorted(arrays.items())}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            _save(file, host, dict(metadata or {}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error}): choose a folder with room and write access") from error
    finally:
        with contextlib.suppress(OSError):  # gone after the replace, or never there
            temporary.unlink()


def _save(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """The safetensors format. Not the package's writer: that one orders the metadata by a hash that changes from run to run."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    # Widest type first, as the package does, so that every tensor is aligned.
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in order:
        array = arrays[name]
        if array.dtype not in _CODES:
            raise WeightsError(f"{name}: type {array.dtype} cannot be stored as safetensors: cast it to one of {sorted(_CODES.values())}")
        header[name] = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    digest = hashlib.sha256(_text(header))
    for name in order:
        digest.update(arrays[name].tobytes())
    text = _text({**header, "__metadata__": {**metadata, _DIGEST: digest.hexdigest()}})
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(arrays[name].tobytes())


def _text(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _verify(path: pathlib.Path) -> None:
    """WeightsError when a file that carries its sha256 is not what was written. Others (of the package's writer) pass."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = header.pop("__metadata__", {})
        expected = metadata.pop(_DIGEST, None)
        if expected is None:
            return
        digest = hashlib.sha256(_text({**header, "__metadata__": metadata} if metadata else header))
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        raise WeightsError(f"{path}: was changed after it was written (sha256): fetch it again, or make it anew")


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The header's metadata of one safetensors file; no tensor is read. WeightsError: missing or damaged."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {key: value for key, value in (file.metadata() or {}).items() if key != _DIGEST}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}): fetch it again") from error


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header metadata of a safetensors file, an index file, or a folder that holds either.

    A sharded set (`*.safetensors.index.json`) is read whole; every tensor that the index names must be in the shard that it names.
    WeightsError: missing, truncated or otherwise unreadable file, a bit that flipped since `write`, index and shards that disagree.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        found = [path / name for name in (INDEX, SINGLE) if (path / name).is_file()]
        if not found:
            raise WeightsError(f"{path}: holds neither {SINGLE} nor {INDEX}: name the weights file itself")
        path = found[0]
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file: check the path or convert the checkpoint with `segjax convert`")
    return read_sharded(path, read) if path.suffix == ".json" else _read_single(path)


def _read_single(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != _DIGEST}
        _verify(path)
        return arrays, metadata
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise WeightsError(
            f"{path}: not a complete safetensors file ({size} bytes; {error}): fetch it again, or run `segjax convert` if it is a pickle"
        ) from error


def weight_map(path: pathlib.Path) -> dict[str, str]:
    """Tensor -> shard of an index file. WeightsError: damaged, or a shard that is no plain file name."""
    try:
        places = dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not an index of weights (needs a JSON object with weight_map): {error!r}") from error
    for shard in places.values():
        if pathlib.PurePath(str(shard)).name != shard:
            raise WeightsError(f"{path}: shard {shard!r} is not a plain file name beside the index: the index is not to be trusted")
    return places


def read_sharded(path: pathlib.Path, read_shard: Callable[[pathlib.Path], tuple[Mapping[str, np.ndarray], Mapping[str, str]]]):
    """Arrays and metadata of every shard of an index, each read by `read_shard`. WeightsError: a tensor that is in no shard."""
    places = weight_map(path)
    arrays: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for shard in sorted(set(places.values())):
        part, more = read_shard(path.parent / shard)
        metadata.update(more)
        arrays.update({name: value for name, value in part.items() if places.get(name) == shard})
    missing = sorted(set(places) - set(arrays))
    if missing:
        raise WeightsError(f"{path}: {len(missing)} tensors of the index are in no shard, first {missing[:10]}: fetch the shards again")
    return arrays, metadata
