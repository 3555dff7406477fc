"""Tensors out of `torch.save` files (zip, and the legacy form before torch 1.6) and TorchScript archives without torch, executing nothing.

Also numpy arrays out of plain pickles of a dict (detectron2's model zoo).

A pickle is a program. `restricted.Unpickler` resolves a closed list of names (tensors, storages, ordered dicts, numpy scalars) to inert
stand-ins; any other name ends the reading with a WeightsError. Of a TorchScript archive (OpenAI's CLIP downloads) the modules' attributes
are read, never its code. Formats: torch/serialization.py, torch/_utils.py, torch/csrc/jit/serialization.
"""

import io
import os
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.restricted import NumpyArray, ScriptModule, Storage, Tensor, Unpickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def read(path: str | os.PathLike) -> Any:
    """The nested dicts, lists, numbers and texts of a `torch.save` file, with every tensor as a read-only numpy array.

    Zip files and legacy pickles; float64/32/16, bfloat16, integers, bool; shared storages and strides as they were (views, not copies).
    Of a TorchScript archive its state dict: {"a.b.weight": array}, buffers included.
    Executes nothing from the file. WeightsError: any name outside the closed list (it is named), truncation, a failed CRC.
    """
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_zip(file) if is_zip else _read_legacy(file)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in nearly any way inside the unpickler
        size = path.stat().st_size if path.exists() else 0
        raise WeightsError(
            f"{path}: not a complete torch checkpoint ({size} bytes; {type(error).__name__}: {error}): fetch it again"
        ) from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise pickle.UnpicklingError("a zip file without one data.pkl, so not from torch.save")
        root = roots[0]
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("tensors in big-endian order")
        storages: dict[str, Storage] = {}
        script = f"{root}constants.pkl" in names
        content = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storages, script=script).load()
        for key, storage in storages.items():
            data = archive.read(f"{root}data/{key}")  # zipfile checks the CRC: a flipped bit does not pass
            storage.data = np.frombuffer(data, storage.dtype, count=storage.numel)
    return _resolve(content)


def _read_legacy(file: BinaryIO) -> Any:
    storages: dict[str, Storage] = {}
    first = Unpickler(file, {}).load()
    if isinstance(first, dict):
        return _resolve(first)
    if first != LEGACY_MAGIC or Unpickler(file, {}).load() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("no magic number of torch.save at its start")
    if not Unpickler(file, {}).load().get("little_endian", True):
        raise pickle.UnpicklingError("tensors in big-endian order")
    content = Unpickler(file, storages).load()
    for key in Unpickler(file, {}).load():
        storage = storages[str(key)]
        numel = int.from_bytes(file.read(8), "little")
        data = file.read(storage.numel * storage.dtype.itemsize)
        if numel != storage.numel or len(data) != numel * storage.dtype.itemsize:
            raise EOFError(f"storage {key} has {len(data)} bytes of {storage.numel * storage.dtype.itemsize}")
        storage.data = np.frombuffer(data, storage.dtype)
    return _resolve(content)


def _resolve(value: Any) -> Any:
    """Replace tensors by arrays through the nested dicts, lists and tuples, a TorchScript module by its state dict."""
    if isinstance(value, Tensor | NumpyArray):
        return value.array()
    if isinstance(value, ScriptModule):
        return dict(_state(value, ""))
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    return value


def _state(module: ScriptModule, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of every tensor of a TorchScript module and of the modules in it."""
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.array()
        elif isinstance(value, ScriptModule):
            yield from _state(value, f"{prefix}{name}.")
