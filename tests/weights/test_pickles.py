"""The restricted reader of torch.save files: what it reads, and what it refuses."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.weights import pickles, wrappers


class _Malicious:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def _zip(path, payload: bytes, **files):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        for name, data in files.items():
            archive.writestr(f"archive/{name}", data)


def _legacy(path, *objects):
    with open(path, "wb") as file:
        for item in (pickles.LEGACY_MAGIC, pickles.LEGACY_PROTOCOL, {"little_endian": True}, *objects):
            pickle.dump(item, file, protocol=2)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_malicious_pickle_is_named_and_not_executed(tmp_path, form):
    flag, path = tmp_path / "executed", tmp_path / "bad.pth"
    content = {"weight": _Malicious(flag)}
    if form == "zip":
        _zip(path, pickle.dumps(content, protocol=2))
    else:
        _legacy(path, content, [])
    with pytest.raises(WeightsError, match=r"bad\.pth.*posix\.system.*nothing in it was executed"):
        pickles.read(path)
    assert not flag.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "builtins\ngetattr", "torch.storage\n_load_from_bytes", "torch\nload", "os\nsystem"])
def test_names_outside_the_list_are_refused(tmp_path, name):
    path = tmp_path / "bad.pth"
    _zip(path, b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(WeightsError, match=name.replace("\n", r"\.")):
        pickles.read(path)


def test_a_pickle_cannot_change_what_it_is_handed(tmp_path):
    path = tmp_path / "bad.pth"
    _zip(path, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x09\x00\x00\x00_functionNsb.")
    with pytest.raises(WeightsError, match="may not set the state"):
        pickles.read(path)


def test_a_tensor_may_not_reach_outside_its_storage(tmp_path):
    torch = pytest.importorskip("torch")
    path, wide = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"a": torch.arange(6.0)}, path)
    with zipfile.ZipFile(path) as archive:
        payload = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    _zip(wide, payload.replace(b"K\x06\x85q", b"K\x60\x85q"), **{"data/0": np.arange(6.0, dtype=np.float32).tobytes()})
    with pytest.raises(WeightsError, match="reaches element 95"):
        pickles.read(wide)


@pytest.mark.parametrize("zip_form", [True, False])
def test_every_type_stride_and_shared_storage(tmp_path, zip_form):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "f64": torch.linspace(0, 1, 5, dtype=torch.float64),
        "f16": torch.linspace(0, 1, 5).half(),
        "bf16": torch.linspace(0, 1, 5).bfloat16(),
        **{str(t): torch.arange(3).to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.T,
        "window": base[1:3, 2:5],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 4),
        "last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.rand(2)),
    }
    content = {"state_dict": torch.nn.Module().state_dict() | tensors, "epoch": 3, "miou": np.float64(0.5), "names": ("a", ["b"])}
    torch.save(content, tmp_path / "all.pth", _use_new_zipfile_serialization=zip_form)
    got = pickles.read(tmp_path / "all.pth")
    assert (got["epoch"], got["miou"], got["names"]) == (3, 0.5, ("a", ["b"]))
    for name, tensor in tensors.items():
        array = got["state_dict"][name]
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch."), name
        assert array.shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(array.astype(np.float64), tensor.detach().double().numpy(), err_msg=name)
    assert np.shares_memory(got["state_dict"]["transposed"], got["state_dict"]["window"])
    assert not got["state_dict"]["window"].flags.writeable


@pytest.mark.parametrize("file", ["resnet_torchvision/resnet50-tiny.pth", "deeplabv2_resnet_scale/DeepLab_resnet_pretrained_init-tiny.pth"])
def test_truncation_at_any_place_is_an_error(goldens, tmp_path, file):
    data = (goldens / file).read_bytes()
    path = tmp_path / "cut.pth"
    for keep in (3, 50, 1000, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:keep])
        with pytest.raises(WeightsError, match=r"cut\.pth"):
            pickles.read(path)


def test_a_flipped_bit_in_a_tensor_of_a_zip_is_an_error(goldens, tmp_path):
    data = bytearray((goldens / "resnet_torchvision/resnet50-tiny.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(WeightsError, match="CRC"):
        pickles.read(tmp_path / "flipped.pth")


def test_a_foreign_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(WeightsError, match="not from torch.save"):
        pickles.read(tmp_path / "other.zip")


def _script(torch):
    """A small network with what scripted modules carry beside tensors: a list, a text, hooks, half precision, a shared parameter."""

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)
            self.sizes = [1, 2]
            self.register_buffer("mask", torch.rand(3))

        def forward(self, x):
            return self.fc(x) * self.mask * self.sizes[1]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Sequential(Inner(), torch.nn.ReLU(), Inner())
            self.visual[2].fc.weight = self.visual[0].fc.weight
            self.logit_scale = torch.nn.Parameter(torch.tensor(1.5))
            self.register_buffer("input_resolution", torch.tensor(224))
            self.bn = torch.nn.BatchNorm1d(3)
            self.title = "a text"

        def forward(self, x):
            return self.visual(self.bn(x)) * self.logit_scale

    return Net().eval()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_a_torchscript_archive_gives_its_state_dict_and_runs_no_code(tmp_path, how):
    torch = pytest.importorskip("torch")
    net = _script(torch)
    scripted = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.zeros(2, 3))
    scripted.half().save(tmp_path / "net.pt")
    expected = scripted.state_dict()
    flag = tmp_path / "executed"
    with zipfile.ZipFile(tmp_path / "net.pt") as whole, zipfile.ZipFile(tmp_path / "spoilt.pt", "w") as spoilt:
        for name in whole.namelist():  # code that would leave a trace if anything imported or compiled it
            spoilt.writestr(name, f"open({str(flag)!r}, 'w')" if "/code/" in name else whole.read(name))
    for file in ("net.pt", "spoilt.pt"):
        got, removed = wrappers.read_state(tmp_path / file)
        assert removed == () and set(got) == set(expected) and not flag.exists()
        for name, tensor in expected.items():
            assert got[name].dtype.name == str(tensor.dtype).removeprefix("torch."), name
            np.testing.assert_array_equal(got[name], tensor.numpy(), err_msg=name)


def test_a_torchscript_archive_may_name_nothing_else(tmp_path):
    flag, path = tmp_path / "executed", tmp_path / "bad.pt"
    _zip(path, pickle.dumps({"weight": _Malicious(flag)}, protocol=2), **{"constants.pkl": b""})
    with pytest.raises(WeightsError, match=r"posix\.system.*nothing in it was executed"):
        pickles.read(path)
    assert not flag.exists()
    _zip(path, b"\x80\x02c__torch__\nNet\n)\x81]b.", **{"constants.pkl": b""})
    with pytest.raises(WeightsError, match="no dict of attributes"):
        pickles.read(path)
    _zip(path, b"\x80\x02c__torch__\nNet\n)\x81}b.")
    with pytest.raises(WeightsError, match=r"asks for __torch__\.Net"):
        pickles.read(path)


def test_unwrap_takes_off_wrappers_and_prefixes():
    x = np.zeros(2)
    assert wrappers.unwrap({"module.a": x})[1] == ("module.",)
    arrays, removed = wrappers.unwrap({"meta": {}, "state_dict": {"module.model.a.b": x, "module.ema_model.a.b": x + 1}, "optimizer": {}})
    assert removed == ("state_dict", "module.", "model.") and list(arrays) == ["a.b"] and arrays["a.b"][0] == 0
    assert wrappers.unwrap({"model.a": x, "ema_model.a": x + 1, "imnet_model.a": x}, branch="ema_model")[0]["a"][0] == 1
    assert list(wrappers.unwrap({"Scale.conv1.weight": x, "Scale.bn1.weight": x})[0]) == ["conv1.weight", "bn1.weight"]
    assert list(wrappers.unwrap({"module.a": x, "b": x, "input_resolution": 224})[0]) == ["module.a", "b"]
    assert list(wrappers.unwrap({"module.model.a": x, "module.loss.criterion.weight": x})[0]) == ["a"]
    assert list(wrappers.unwrap({"loss.criterion.weight": x})[0]) == ["loss.criterion.weight"]
    nested = {"ResNet101": {"model_state": {"a": x}, "objective_vectors": x}, "best_iou": 0.5}
    assert wrappers.unwrap(nested)[1] == ("ResNet101", "model_state") and list(wrappers.unwrap(nested)[0]) == ["a"]
    with pytest.raises(WeightsError, match="no network 'ema_model'"):
        wrappers.unwrap({"model.a": x}, branch="ema_model")
    with pytest.raises(WeightsError, match="no state dict"):
        wrappers.unwrap({"epoch": 3, "miou": 0.5})


def test_the_kind_of_a_file_is_read_from_its_bytes(goldens, tmp_path):
    assert wrappers.kind(goldens / "resnet_torchvision/resnet50-tiny.pth") == "torch"
    assert wrappers.kind(goldens / "deeplabv2_resnet_scale/DeepLab_resnet_pretrained_init-tiny.pth") == "torch"
    (tmp_path / "net.t7").write_bytes(b"\x04\x00\x00\x00\x01\x00\x00\x00\x03\x00\x00\x00V 1")
    assert wrappers.kind(tmp_path / "net.t7") == "torch7"
    buffer = io.BytesIO(b"hello, I am a text file")
    (tmp_path / "text").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match="no torch, safetensors or Torch7"):
        wrappers.kind(tmp_path / "text")
    with pytest.raises(WeightsError, match="no such file"):
        wrappers.kind(tmp_path / "absent")


@pytest.mark.parametrize("protocol", [3, 4])
def test_numpy_arrays_of_a_plain_pickle(tmp_path, protocol):
    arrays = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "index": np.arange(4, dtype=np.int64)[::2],
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.array(2.5),
    }
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party", "matching_heuristics": True}, protocol))
    found, removed = wrappers.read_state(path)
    assert removed == ("model",) and set(found) == set(arrays)
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape and not found[key].flags.writeable
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("array", [np.array([_Malicious("flag")], object), np.array(["text"])])
def test_numpy_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": array}}, 2))
    with pytest.raises(WeightsError, match="is not a number|nothing in it was executed"):
        pickles.read(path)


def test_a_numpy_array_with_too_few_bytes_is_refused(tmp_path):
    path = tmp_path / "bad.pkl"
    payload = pickle.dumps({"weight": np.arange(6, dtype=np.float32)}, 4)
    assert payload.count(b"K\x06\x85") == 1
    path.write_bytes(payload.replace(b"K\x06\x85", b"K\x07\x85"))
    with pytest.raises(WeightsError, match="not a complete torch checkpoint"):
        pickles.read(path)
