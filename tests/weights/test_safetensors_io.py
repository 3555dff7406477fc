"""Safetensors files: exact, sharded, hashed, and refused when damaged."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.weights import safetensors_io as io

ARRAYS = {
    "params/a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
    "params/a/half": np.linspace(0, 1, 4).astype(ml_dtypes.bfloat16),
    "batch_stats/a/mean": np.float32(2.5).reshape(()),
    "steps": np.array([1, 2], np.int64),
}


def test_flatten_and_back():
    tree = {"params": {"b": {"kernel": 1}, "a": 2}, "batch_stats": {"a": 3}}
    assert io.flatten(tree) == {"batch_stats/a": 3, "params/a": 2, "params/b/kernel": 1}
    assert io.unflatten(io.flatten(tree)) == tree


def test_round_trip_is_exact_and_repeatable(tmp_path):
    for name in ("one", "two"):
        io.write(tmp_path / f"new/{name}.safetensors", ARRAYS, {"label_space": "cityscapes19", "layout": "x", "model": "{}"})
    got, metadata = io.read(tmp_path / "new/one.safetensors")
    assert metadata == {"label_space": "cityscapes19", "layout": "x", "model": "{}"}
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == ["one.safetensors", "two.safetensors"]  # no temporary file left
    assert (tmp_path / "new/one.safetensors").read_bytes() == (tmp_path / "new/two.safetensors").read_bytes()


def test_the_bytes_are_fixed(tmp_path):
    path = tmp_path / "w.safetensors"  # in another process too: nothing in the file may follow a per-process hash seed
    io.write(path, {"b": np.arange(3, dtype=np.float32), "a": np.array([True])}, {"z": "1", "y": "2", "x": "3", "w": "4"})
    assert io.sha256(path) == "0741bd3c3dbdc7f0fa239212e75de16614b047875c67404510546dcc098f705b"
    with pytest.raises(WeightsError, match="x: type complex64"):
        io.write(path, {"x": np.zeros(2, np.complex64)})


@pytest.mark.parametrize("dtype", [*"fdebhilBHIL?", ml_dtypes.bfloat16])
def test_every_type_comes_back(tmp_path, dtype):
    array = np.arange(4).astype(dtype)
    io.write(tmp_path / "w.safetensors", {"a": array, "empty": array[:0]})
    got, _ = io.read(tmp_path / "w.safetensors")
    assert got["a"].dtype == array.dtype and np.array_equal(got["a"], array) and got["empty"].shape == (0,)


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert io.sha256(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def _shards(folder):
    io.write(folder / "model-1.safetensors", {"a": np.zeros(2), "b": np.ones(2)}, {"k": "v"})
    io.write(folder / "model-2.safetensors", {"c": np.full(2, 2.0)})
    return {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}


def test_a_sharded_folder_is_read_whole(tmp_path):
    (tmp_path / io.INDEX).write_text(json.dumps({"weight_map": _shards(tmp_path)}))
    for path in (tmp_path, tmp_path / io.INDEX):
        arrays, metadata = io.read(path)
        assert {key: float(value[0]) for key, value in arrays.items()} == {"a": 0, "b": 1, "c": 2} and metadata == {"k": "v"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": "model-2.safetensors"}, r"1 tensors of the index are in no shard, first \['d'\]"),
        ({"d": "model-3.safetensors"}, "no such weights file"),
        ({"d": "../model-3.safetensors"}, "not a plain file name"),
    ],
)
def test_an_index_that_disagrees_is_refused(tmp_path, change, message):
    (tmp_path / io.INDEX).write_text(json.dumps({"weight_map": _shards(tmp_path) | change}))
    with pytest.raises(WeightsError, match=message):
        io.read(tmp_path)


def test_damaged_and_missing_files_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    io.write(path, ARRAYS)
    data = path.read_bytes()
    for bad in (data[:-1], data[:20], b"", b"\x80\x02}q\x00." * 10):
        path.write_bytes(bad)
        with pytest.raises(WeightsError, match=rf"w\.safetensors: not a complete safetensors file \({len(bad)} bytes"):
            io.read(path)
    for place in range(8, len(data), 7):  # past the length: names, shapes, metadata, tensors
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            arrays, metadata = io.read(path)
        except WeightsError:
            continue
        assert {name: value.tobytes() for name, value in arrays.items()} == {name: value.tobytes() for name, value in ARRAYS.items()}, place
        assert len(metadata) == 1, place  # the one place that goes unseen is the name of the check itself
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
    with pytest.raises(WeightsError, match=r"w\.safetensors: was changed after it was written \(sha256\)"):
        io.read(path)
    with pytest.raises(WeightsError, match="no such weights file"):
        io.read(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="holds neither"):
        io.read(tmp_path)
    (tmp_path / io.INDEX).write_text("[]")
    with pytest.raises(WeightsError, match="not an index of weights"):
        io.read(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    io.write(path, {"a": np.ones(2)})
    before = path.read_bytes()

    def full(file, arrays, metadata):
        file.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "_save", full)
    with pytest.raises(WeightsError, match=r"w\.safetensors: cannot be written .*No space left"):
        io.write(path, {"a": np.zeros(2)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(WeightsError, match="cannot be written"):
        io.write(path / "below_a_file.safetensors", {"a": np.zeros(2)})
