"""`segjax convert` as a person runs it: there, back, wrong files, wrong flags, exit codes."""

import json
import pickle
import shutil

import numpy as np
import pytest

from segjax import cli
from segjax.verbs import build, frozen, networks, variables
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
    alone = frozen.load({"imagenet": output})["imagenet"]  # as a frozen encoder it is a network by itself
    np.testing.assert_array_equal(alone["params"]["conv1"]["kernel"], paths["params/backbone/conv1/kernel"])
    assert networks.load(output).module.style == "torchvision"


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
        (["--output=weights/"], 2, "name it with --to"),
        (["--set=num_heads"], 2, "expected KEY=VALUE"),
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
        ("odd.safetensors", ": none of "),
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


HF, SEPASPP = "segformer_hf", "daformer_sepaspp/latest.pth"


class Trap:
    """A pickle that writes a file as soon as someone executes it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_hostile_and_damaged_files_are_refused_and_nothing_runs(goldens, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    output, touched = f"--output={tmp_path / 'o.safetensors'}", tmp_path / "touched"
    state = {"conv1.weight": torch.zeros(2), "extra": Trap(touched)}
    torch.save(state, tmp_path / "trap.pth")
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"conv1.weight": Trap(touched)}, protocol=2))
    shards = tmp_path / "shards"
    shards.mkdir()
    shutil.copy(tmp_path / "trap.pth", shards / "pytorch_model-00001-of-00001.bin")
    index = shards / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"conv1.weight": "pytorch_model-00001-of-00001.bin"}}))
    (tmp_path / "outside.bin.index.json").write_text(json.dumps({"weight_map": {"conv1.weight": "../trap.pth"}}))
    cut = (goldens / HF / "model.safetensors").read_bytes()[:-100]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    for name, message in (
        ("trap.pth", "open"),
        ("old.pth", "open"),
        ("plain.bin", "plain.bin"),
        ("shards", "open"),
        ("outside.bin.index.json", "not a plain file name"),
        ("cut.safetensors", "not a complete safetensors file"),
    ):
        assert _convert(f"--input={tmp_path / name}", output) == 4, name
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not touched.exists() and not (tmp_path / "o.safetensors").exists()


def test_wrong_architectures_and_class_counts_end_in_one_line(goldens, tmp_path, capsys):
    source, output = f"--input={goldens / SEPASPP}", f"--output={tmp_path / 'o.safetensors'}"
    folder = tmp_path / "hf"
    shutil.copytree(goldens / HF, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_sizes": [32, 64, 160, 256]}))
    for flags, code, message in (
        ([source, "--layout=segformer_nvlabs"], 4, "no convolution 'decode_head.linear_fuse.conv.weight'"),
        ([source, "--set=num_classes=16"], 4, "wrong shapes 2: decode_head.conv_seg"),
        ([source, "--set=num_heads=(1,2,7,8)"], 2, "set num_heads=(...)"),
        ([source, "--set=heads=8"], 2, "num_heads"),
        ([source, "--branch=imnet_model"], 4, "it holds ['model', 'ema_model']"),
        ([f"--input={folder}"], 4, "hidden_sizes differ"),
        ([f"--input={tmp_path}"], 4, "expected one of model.safetensors.index.json"),
        ([source, "--label-space=camvid11"], 2, "19 outputs do not fit camvid11"),
    ):
        assert _convert(*flags, output) == code, flags
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_one_network_of_a_training_checkpoint(goldens, tmp_path):
    there = {branch: tmp_path / f"{branch}.safetensors" for branch in ("model", "ema_model")}
    for branch, output in there.items():
        assert _convert(f"--input={goldens / SEPASPP}", f"--output={output}", f"--branch={branch}", "--label-space=cityscapes19") == 0
        state, _ = wrappers.read_state(goldens / SEPASPP, branch=branch)
        flat, metadata = safetensors_io.read(output)
        weight = state["decode_head.conv_seg.weight"]
        assert np.array_equal(flat["params/decode_head/conv_seg/kernel"][0, 0], weight[:, :, 0, 0].T)
        assert metadata["layout"] == "daformer" and json.loads(metadata["model"])["fusion"] == "sepaspp"
    report = json.loads((tmp_path / "ema_model.safetensors.source.json").read_text())
    assert report["removed"] == ["state_dict", "ema_model."]


def test_a_folder_for_transformers(goldens, tmp_path):
    """There and back: the tensors' bytes, the config's numbers, and in torch the outputs; in half precision too."""
    there, folder = tmp_path / "there.safetensors", tmp_path / "hf"
    assert _convert(f"--input={goldens / HF}", f"--output={there}") == 0
    assert _convert(f"--input={there}", f"--output={folder}/", "--to=segformer_hf") == 0
    old, new = (safetensors_io.read(place / "model.safetensors")[0] for place in (goldens / HF, folder))
    assert all(new[key].tobytes() == old[key].tobytes() for key in new)
    assert {key for key in old if key not in new} == {key for key in old if key.endswith("num_batches_tracked")}
    configs = [json.loads((place / "config.json").read_text()) for place in (goldens / HF, folder)]
    assert all(configs[0][key] == value for key, value in configs[1].items())
    assert json.loads((folder / "source.json").read_text())["layout"] == "segformer_hf"
    assert networks.load(folder).spec == networks.load(goldens / HF).spec

    half = {key: value.astype(np.float16) if value.dtype == np.float32 else value for key, value in old.items()}
    safetensors_io.write(tmp_path / "half" / "model.safetensors", half)
    assert _convert(f"--input={tmp_path / 'half'}", f"--output={tmp_path / 'h.safetensors'}") == 0
    assert _convert(f"--input={tmp_path / 'h.safetensors'}", f"--output={tmp_path / 'h2.safetensors'}", "--to=segformer_hf") == 0
    back = safetensors_io.read(tmp_path / "h2.safetensors")[0]
    assert all(back[key].dtype == half[key].dtype and back[key].tobytes() == half[key].tobytes() for key in back)

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    golden = np.load(goldens / HF / "golden.npz")
    net, loading = transformers.SegformerForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert all(key.endswith("num_batches_tracked") for key in loading["missing_keys"])
    with torch.no_grad():
        logits = net.eval()(torch.from_numpy(golden["in_image"])).logits
    np.testing.assert_allclose(logits, golden["out_logits"], atol=1e-6)


def test_folders_that_make_no_sense(goldens, tmp_path, capsys):
    there = tmp_path / "there.safetensors"
    assert _convert(f"--input={goldens / SEPASPP}", f"--output={there}") == 0
    for to, code, message in (("daformer", 2, "no layout of folders"), ("segformer_hf", 4, "decode_head/fuse_layer/aspp_modules_0")):
        assert _convert(f"--input={there}", f"--output={tmp_path / to}/", f"--to={to}") == code
        assert message in capsys.readouterr().err and not (tmp_path / to).exists()


def test_a_trained_network_becomes_a_folder(tmp_path):
    """Its spec says `variant` where a folder's config has sizes, and what it started from, which is no argument of the network."""
    spec = {"make": "segjax.nets.segformer:SegFormer", "num_classes": 3, "variant": "b0", "channels": 8, "weights": "", "classifier": "map"}
    net = build.resolve({k: v for k, v in spec.items() if k not in build.WEIGHT_KEYS}, "test")
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in safetensors_io.flatten(variables.shapes(net)).items()}
    safetensors_io.write(tmp_path / "w.safetensors", zeros, {"model": json.dumps(spec)})
    assert networks.load(tmp_path / "w.safetensors").module.variant == "b0"
    assert _convert(f"--input={tmp_path / 'w.safetensors'}", f"--output={tmp_path / 'hf'}/", "--to=segformer_hf") == 0
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["hidden_sizes"] == [32, 64, 160, 256] and config["depths"] == [2, 2, 2, 2] and len(config["id2label"]) == 3


def test_shards_of_a_pickle(goldens, tmp_path):
    torch = pytest.importorskip("torch")
    arrays, folder = safetensors_io.read(goldens / HF)[0], tmp_path / "shards"
    folder.mkdir()
    shutil.copy(goldens / HF / "config.json", folder)
    names, places = sorted(arrays), {}
    for n in range(2):
        shard = f"pytorch_model-0000{n + 1}-of-00002.bin"
        torch.save({key: torch.from_numpy(arrays[key]) for key in names[n::2]}, folder / shard)
        places |= dict.fromkeys(names[n::2], shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert _convert(f"--input={folder}", f"--output={tmp_path / 'a.safetensors'}") == 0
    assert _convert(f"--input={goldens / HF}", f"--output={tmp_path / 'b.safetensors'}") == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert len(json.loads((tmp_path / "a.safetensors.source.json").read_text())["sha256"]) == 3
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert _convert(f"--input={folder}", f"--output={tmp_path / 'c.safetensors'}") == 4
