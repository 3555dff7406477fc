"""What a path stands for: folders of the hubs, the config beside the weights, types and forms that the way back keeps."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.verbs import networks
from segjax.weights import layouts, safetensors_io, sources

HF = "segformer_hf"


def test_a_folder_gives_its_preferred_weights(tmp_path):
    for name in reversed(sources.WEIGHTS):  # one more at a time, each preferred to those before
        (tmp_path / name).write_bytes(b"")
        assert sources.locate(tmp_path).name == name
    assert sources.locate(tmp_path / sources.WEIGHTS[-1]).name == sources.WEIGHTS[-1]
    with pytest.raises(WeightsError, match="absent: no such file or folder"):
        sources.locate(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="empty: holds nothing, expected one of model.safetensors.index.json"):
        sources.locate(tmp_path / "empty")


def test_the_config_beside_the_weights_is_read(goldens, tmp_path):
    folder = shutil.copytree(goldens / HF, tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    for path in (folder, folder / "model.safetensors"):
        assert sources.read(path).config == config
    (folder / "config.json").unlink()
    source = sources.read(folder)
    assert source.config == {} and layouts.recognise(source.arrays, "hf").model(source.arrays, {})["num_heads"] == (1, 2, 5, 8)
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert sources.read(folder).config == {"model_cfg": {}}
    for text, message in (("{", "config.json: not JSON"), ("[]", "config.json: holds list, expected an object")):
        (folder / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=message):
            sources.read(folder)


def test_an_index_is_read_with_its_shards(tmp_path):
    arrays = {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.float16)}
    for n, (key, value) in enumerate(arrays.items()):
        safetensors_io.write(tmp_path / f"model-{n}.safetensors", {key: value})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}}))
    source = sources.read(tmp_path)
    assert all(np.array_equal(source.arrays[key], arrays[key]) for key in arrays) and sources.dtypes(source) == {"b": "float16"}
    assert [file.name for file in sources.files(tmp_path)] == [index.name, "model-0.safetensors", "model-1.safetensors"]
    assert sources.header(tmp_path) == {} and sources.header(index) == {}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_types_come_back_as_they_were(goldens, tmp_path, dtype):
    arrays, config = safetensors_io.read(goldens / HF)[0], goldens / HF / "config.json"
    odd = {key: value.astype(dtype) if "block" in key else value for key, value in arrays.items() if value.dtype == np.float32}
    safetensors_io.write(tmp_path / "model.safetensors", odd)
    shutil.copy(config, tmp_path)
    network = networks.load(tmp_path)
    flat = safetensors_io.flatten(network.variables)
    assert all(value.dtype == np.float32 for value in flat.values())
    back = networks.to_public(flat, network.metadata, layouts.known()["segformer_hf"], "test")
    assert set(back) == set(odd) and all(back[key].tobytes() == odd[key].tobytes() for key in odd)


def test_the_form_that_was_read_is_the_form_that_is_written(goldens, tmp_path):
    public = layouts.known()["segformer_hf"]
    disk = networks.load(goldens / HF)
    flat = safetensors_io.flatten(disk.variables)
    assert disk.metadata["form"] == "segformer_hf"
    memory = networks.to_public(flat, {"form": "segformer_hf_memory"}, public, "test")
    assert "segformer.stages.0.blocks.0.attention.q_proj.weight" in memory
    safetensors_io.write(tmp_path / "model.safetensors", memory)
    again = networks.load(tmp_path)
    assert again.metadata["form"] == "segformer_hf_memory"
    back = networks.to_public(safetensors_io.flatten(again.variables), again.metadata, public, "test")
    assert set(back) == set(memory) and all(back[key].tobytes() == memory[key].tobytes() for key in back)
    assert "segformer.encoder.block.0.0.attention.self.query.weight" in networks.to_public(flat, {}, public, "test")


def test_a_segjax_file_opens_as_the_same_network(goldens, tmp_path):
    network = networks.load(goldens / HF)
    safetensors_io.write(tmp_path / "w.safetensors", safetensors_io.flatten(network.variables), network.metadata)
    again = networks.load(tmp_path / "w.safetensors")
    assert again.module == network.module and again.report == {}
    assert networks.load(tmp_path / "w.safetensors", settings={"drop_path": 0.2}).module.drop_path == 0.2
    for a, b in zip(*(safetensors_io.flatten(n.variables).values() for n in (network, again)), strict=True):
        np.testing.assert_array_equal(a, b)
