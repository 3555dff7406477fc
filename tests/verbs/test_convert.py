"""`segjax convert` as a person runs it: there, back, wrong files, wrong flags, exit codes."""

import json
import shutil

import numpy as np
import pytest

from segjax import cli
from segjax.verbs import build, variables
from segjax.weights import safetensors_io, wrappers

MULTI = "deeplabv2_resnet_multi/GTA2Cityscapes_multi-tiny.pth"


def _convert(*flags):
    return cli.main(["convert", *map(str, flags)])


def test_there_and_back(goldens, tmp_path, capsys):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    assert _convert(f"--input={goldens / MULTI}", f"--output={there}", "--branches=2", "--label-space=cityscapes19") == 0
    assert "deeplabv2_resnet, 640 tensors" in capsys.readouterr().out
    report = json.loads((tmp_path / "there.safetensors.source.json").read_text())
    assert report["sha256"] == {(goldens / MULTI).name: safetensors_io.sha256(goldens / MULTI)}
    assert report["output_sha256"] == safetensors_io.sha256(there)
    source, _ = wrappers.read_state(goldens / MULTI)
    assert report["source_tensors"] == len(source)
    assert report["source_tensors_ignored"] == sum(key.endswith("num_batches_tracked") for key in source)
    flat, metadata = safetensors_io.read(there)
    assert report["output_tensors"] == len(flat) and report["output_numbers"] == sum(x.size for x in flat.values())
    assert metadata["layout"] == "deeplabv2_resnet" and metadata["label_space"] == "cityscapes19"
    network = build.resolve(json.loads(metadata["model"]), "metadata")
    assert network.branches == 2 and network.num_classes == 19
    loaded = variables.load(there, network)  # the file names the network that it loads into
    assert loaded["params"]["classifier"]["kernel"].shape[-1] == 19

    assert _convert(f"--input={there}", f"--output={back}", "--to=deeplabv2_resnet") == 0
    returned, _ = safetensors_io.read(back)
    assert set(source) - set(returned) == {key for key in source if key.endswith("num_batches_tracked")}
    assert all(np.array_equal(returned[key], source[key]) for key in returned)
    assert _convert(f"--input={back}", f"--output={tmp_path / 'again.safetensors'}", "--branches=2", "--label-space=cityscapes19") == 0
    assert all(np.array_equal(value, flat[path]) for path, value in safetensors_io.read(tmp_path / "again.safetensors")[0].items())


def test_a_torchvision_backbone_goes_under_its_name(goldens, tmp_path):
    output = tmp_path / "b.safetensors"
    assert _convert(f"--input={goldens / 'resnet_torchvision/resnet50-tiny.pth'}", f"--output={output}", "--prefix=backbone") == 0
    paths = safetensors_io.read(output)[0]
    assert "params/backbone/conv1/kernel" in paths and all("/backbone/" in path for path in paths)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--layout=enet_pytorch"], 4, "layout enet_pytorch: no final transposed convolution"),
        (["--layout=enet_pytorc"], 2, "enet_pytorch, enet_torch7"),
        (["--layout=segjax.weights.resnet:atrous"], 2, "is a function, expected a segjax.weights.engine.Public"),
        (["--to=enet_torch7"], 2, "read only"),
        (["--to=enet_pytorch"], 4, "holds no segjax parameters"),
        (["--branch=ema_model", "--label-space=camvid11"], 2, "19 outputs do not fit camvid11"),
        (["--output=weights.pth"], 2, "ends in .safetensors"),
    ],
)
def test_wrong_flags_end_in_one_line(goldens, tmp_path, capsys, flags, code, message):
    source = tmp_path / "in.safetensors"  # the same network from a plain safetensors file
    safetensors_io.write(source, wrappers.read_state(goldens / MULTI)[0])
    assert _convert(f"--input={source}", f"--output={tmp_path / 'o.safetensors'}", *flags) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.safetensors").exists()


def test_an_own_layout_by_import_string(goldens, tmp_path):
    flags = (f"--input={goldens / MULTI}", f"--output={tmp_path / 'o.safetensors'}", "--layout=segjax.weights.resnet:DEEPLABV2_RESNET")
    assert _convert(*flags) == 0


def test_bad_files_end_in_one_line(goldens, tmp_path, capsys):
    output = f"--output={tmp_path / 'o.safetensors'}"
    (tmp_path / "cut.pth").write_bytes((goldens / MULTI).read_bytes()[:5000])
    safetensors_io.write(tmp_path / "odd.safetensors", {"some.weight": np.zeros(2)})
    for name, message in (
        ("cut.pth", "not a complete torch checkpoint"),
        ("odd.safetensors", "none of deeplabv2_resnet"),
        ("no.pth", "no such file"),
    ):
        assert _convert(f"--input={tmp_path / name}", output) == 4
        assert message in capsys.readouterr().err
    shutil.copy(goldens / MULTI, tmp_path / "same.safetensors")
    assert _convert(f"--input={tmp_path / 'same.safetensors'}", f"--output={tmp_path / 'same.safetensors'}") == 2


def test_the_real_torch7_enet(real_data, tmp_path):
    pytest.importorskip("torchfile")
    source, output = real_data / "weights" / "enet_cityscapes_torch7" / "enet-model.net", tmp_path / "enet.safetensors"
    assert _convert(f"--input={source}", f"--output={output}", "--label-space=cityscapes19") == 0
    flat, metadata = safetensors_io.read(output)
    assert metadata["bn_epsilon"] == "0.001" and metadata["label_space"] == "cityscapes19" and metadata["layout"] == "enet_torch7"
    network = build.resolve(json.loads(metadata["model"]), "metadata")
    assert network.layout == "torch7" and network.num_classes == 20
    assert variables.outputs_of(output, network) == (20, "cityscapes19")
