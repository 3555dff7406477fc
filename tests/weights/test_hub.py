"""Models of the hub by name, with the client's network functions replaced: what is fetched, what is recorded, what is said offline."""

import json
import pathlib
import shutil
import types

import pytest

from segjax import cli
from segjax.errors import WeightsError
from segjax.weights import hub, sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def client(monkeypatch, goldens, tmp_path):
    """A hub with one model, `org/segformer`; `client.online = False` takes the network away, `client.asked` lists what was fetched."""
    package = pytest.importorskip("huggingface_hub")
    remote, cache = goldens / "segformer_hf", tmp_path / "cache" / "snapshots"
    state = types.SimpleNamespace(online=True, asked=[], revision=None, cached=None)

    class Api:
        def model_info(self, repo, revision):
            if not state.online:
                raise ConnectionError("no route")
            if repo != "org/segformer":
                response = types.SimpleNamespace(status_code=404, headers={}, request=None, url="")
                raise package.errors.RepositoryNotFoundError("404", response=response)
            state.revision = revision
            files = [path.name for path in remote.iterdir()] + ["pytorch_model.bin", "tf_model.h5"]
            return types.SimpleNamespace(sha=COMMIT, siblings=[types.SimpleNamespace(rfilename=name) for name in files])

    def snapshot_download(repo, revision, allow_patterns=None, local_files_only=False):
        folder = cache / COMMIT
        if local_files_only:
            if not folder.is_dir():
                raise package.errors.LocalEntryNotFoundError("nothing cached")
            return str(folder)
        assert revision == COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        state.asked += allow_patterns
        for name in allow_patterns:
            shutil.copy(remote / name, folder / name)
        return str(folder)

    monkeypatch.setattr(package, "HfApi", Api)
    monkeypatch.setattr(package, "snapshot_download", snapshot_download)
    hub.fetch.cache_clear()
    yield state
    hub.fetch.cache_clear()


def test_names_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "org").write_text("")
    assert hub.parse("nvidia/mit-b0") == ("nvidia/mit-b0", "main", "")
    assert hub.parse("nvidia/mit-b0@refs/pr/1") == ("nvidia/mit-b0", "refs/pr/1", "")
    assert hub.parse(f"some-one/sam@{COMMIT}:checkpoints/sam_vit_b.pth") == ("some-one/sam", COMMIT, "checkpoints/sam_vit_b.pth")
    for path in ("runs/model", "weights/net.pth", "./org/name", "/org/name", "name", "a/b/c", pathlib.Path("runs"), "~/x/y", "../a/b"):
        assert hub.parse(path) is None, path


def test_a_model_is_fetched_pinned_and_recorded(client, tmp_path):
    output = tmp_path / "o.safetensors"
    assert cli.main(["convert", "--input=org/segformer@v1", f"--output={output}"]) == 0
    assert client.revision == "v1" and set(client.asked) == {"config.json", "model.safetensors", "arrays.json", "options.json"}
    report = json.loads(pathlib.Path(f"{output}.source.json").read_text())
    assert report["hub"] == {"repo": "org/segformer", "revision": "v1", "commit": COMMIT}
    assert list(report["sha256"]) == ["model.safetensors"] and report["layout"] == "segformer_hf"

    asked = len(client.asked)
    hub.fetch.cache_clear()
    client.online = False
    source = sources.read("org/segformer@v1")
    assert source.origin["commit"] == COMMIT and source.config["model_type"] == "segformer" and len(client.asked) == asked


def test_one_file_of_a_model(client):
    assert sources.read("org/segformer:model.safetensors").path.name == "model.safetensors" and client.asked == ["model.safetensors"]
    with pytest.raises(WeightsError, match=r"org/segformer:other\.pth: the hub's model holds .*expected other\.pth"):
        sources.read("org/segformer:other.pth")


def test_what_cannot_be_fetched_ends_in_one_line_with_the_way_out(client, tmp_path, capsys):
    flags = ["convert", f"--output={tmp_path / 'o.safetensors'}"]
    assert cli.main([*flags, "--input=org/other"]) == 4
    error = capsys.readouterr().err
    assert "org/other: no such path here, and the hub has no such model" in error and error.count("\n") == 1
    client.online = False
    assert cli.main([*flags, "--input=org/segformer@v2"]) == 4
    error = capsys.readouterr().err
    assert "out of reach (ConnectionError)" in error and "hf download org/segformer --revision v2 --local-dir DIR" in error
    assert error.count("\n") == 1


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    hub.fetch.cache_clear()
    with pytest.raises(WeightsError, match=r"pip install 'segjax\[convert\]'"):
        sources.read("org/absent")


def test_each_folder_gives_one_form_of_its_weights():
    files = ["README.md", "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin", "vae/config.json"]
    files += ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin", "tokenizer/merges.txt", "big.ckpt"]
    chosen = {"model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"}
    assert set(hub.choose(files, sources.WEIGHTS)) == chosen | {"vae/diffusion_pytorch_model.bin", "tokenizer/merges.txt"}
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    others = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    indices = ["model.safetensors.index.json", "pytorch_model.bin.index.json"]
    assert hub.choose([*shards, *others, *indices], sources.WEIGHTS) == [*shards, indices[0]]
    assert hub.choose([*others, indices[1]], sources.WEIGHTS) == [*others, indices[1]]
