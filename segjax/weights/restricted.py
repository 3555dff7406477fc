"""An unpickler that can rebuild tensors and do nothing else: every name that it resolves is an inert stand-in of this file."""

import dataclasses
import pickle
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from segjax.errors import WeightsError

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}


class _Inert:
    """Refuses the BUILD opcode, with which a pickle would set attributes of what it has been handed."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError(f"a pickle may not set the state of a {type(self).__name__}")


@dataclasses.dataclass
class Storage(_Inert):
    """A run of numbers; legacy files bring `data` after the pickle, so a tensor is rebuilt only once everything is read."""

    dtype: np.dtype
    numel: int
    data: np.ndarray | None = None


@dataclasses.dataclass
class Tensor(_Inert):
    """A view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Read-only strided view, after checking that it stays inside the storage."""
        data = self.storage.data
        numbers = (self.offset, *self.shape, *self.strides)
        if data is None or not all(isinstance(n, int) and n >= 0 for n in numbers) or len(self.shape) != len(self.strides):
            raise pickle.UnpicklingError(f"tensor of shape {self.shape}, strides {self.strides} without a storage")
        if 0 in self.shape:
            return np.zeros(self.shape, data.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if last >= data.size:
            raise pickle.UnpicklingError(f"tensor of shape {self.shape} reaches element {last} of a storage of {data.size}")
        strides = tuple(s * data.itemsize for s in self.strides)
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides, writeable=False)


class NumpyArray:
    """A numpy array of a plain pickle (detectron2's model zoo), as its parts."""

    _state: tuple[Any, ...] = ()

    def __setstate__(self, state):
        self._state = state

    def array(self) -> np.ndarray:
        """Read-only, after checking that the bytes are as many as the shape needs."""
        _, shape, kind, fortran, data = self._state
        if not isinstance(kind, _NumpyType):
            raise pickle.UnpicklingError("a numpy array without a dtype of numbers")
        data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's bytes
        return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if fortran else "C")


class ScriptModule:
    """What a TorchScript archive calls a module, whatever its class: the attributes that it brings, nothing that it could do."""

    attributes: dict[str, Any]

    def __init__(self):
        self.attributes = {}

    def __setstate__(self, state):
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("a TorchScript module whose state is no dict of attributes")
        self.attributes = dict(state)


class _StorageType(_Inert):
    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)


class _Dict(dict):
    """OrderedDict's stand-in: keeps the items, drops attributes such as state_dict's `_metadata`."""

    def __setstate__(self, state):
        return None


class _NumpyType:
    """numpy.dtype's stand-in; only plain numbers exist."""

    def __init__(self, name="f8", *_):
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"numpy dtype {name!r} is not a number")

    def __setstate__(self, state):
        if len(state) > 1 and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Call(_Inert):
    """One allowed function."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _scalar(kind, data):
    return np.frombuffer(data, kind.dtype, count=1)[0].item()


def _allowed() -> dict[tuple[str, str], Any]:
    """Fresh stand-ins for one reading: whatever a file does to them ends with it."""
    first = _Call(lambda value, *_: value)
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _Dict,
        ("torch", "Size"): _Call(lambda value=(): tuple(value)),
        ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
        ("torch._utils", "_rebuild_parameter"): first,
        ("torch._utils", "_rebuild_parameter_with_state"): first,
        ("torch", "device"): _Call(lambda *parts: ":".join(map(str, parts))),
        ("numpy", "dtype"): _NumpyType,
        ("numpy", "ndarray"): _Inert,
        ("_codecs", "encode"): _Call(lambda text, _="latin1": text.encode("latin1")),
    }
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"):
        names["torch.jit._pickle", name] = first
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[module, "scalar"] = _Call(_scalar)
        names[module, "_reconstruct"] = _Call(lambda *_: NumpyArray())
    for name, dtype in _DTYPES.items():
        names["torch", name] = names["torch.cuda", name] = _StorageType(dtype)
    return names


class Unpickler(pickle.Unpickler):
    """Resolves the allowed names and fills `storages` with the storages that the pickle mentions, by key.

    script: the pickle is a TorchScript archive's; its classes, `__torch__.*`, all become the inert ScriptModule.
    """

    def __init__(self, file: BinaryIO, storages: dict[str, Storage], *, script: bool = False):
        super().__init__(file, encoding="latin1")  # Python 2 wrote the oldest checkpoints
        self._storages = storages
        self._names = _allowed()
        self._script = script

    def find_class(self, module, name):
        if self._script and module.partition(".")[0] == "__torch__":
            return ScriptModule
        if (module, name) not in self._names:
            raise WeightsError(
                f"the pickle asks for {module}.{name}, which is no tensor, and nothing in it was executed: "
                "save the plain state_dict with torch and convert that, or distrust the file"
            )
        return self._names[module, name]

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise pickle.UnpicklingError("an unknown kind of persistent object")
        _, kind, key, _, numel, *view = pid
        if view and view[0] is not None:
            raise pickle.UnpicklingError("a storage that is a view of another (torch before 0.4)")
        known = self._storages.setdefault(str(key), Storage(kind.dtype, numel))
        if known.dtype != kind.dtype:
            raise pickle.UnpicklingError(f"storage {key} is used with two types")
        return known
