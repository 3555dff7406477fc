"""What goes wrong in practice, from the command line: one clear line, the right exit code, nothing lost."""

import shutil

import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.verbs import folder

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    data = {{"make": "segjax.data.folders:FolderDataset", "images": {images!r}, "labels": {labels!r}}}
    stage = {{
        "method": {{"make": "segjax.methods.source_only:make"}},
        "model": {{"make": "verbs_tiny_net:Tiny", "num_classes": 19}},
        "optimizer": {{"lr": 0.01, "schedule": "constant"}},
        "steps": 3,
        "batch_size": 4,
        "data": {{"source": data, "crop": (16, 32), "workers": {workers}}},
        "evaluate": {{}},
        "mesh": {{"data": 1}},
    }}
    return ConfigDict({{"name": "faults", "seed": 0, "order": ("only",), "stages": {{"only": stage}}}})
"""


@pytest.fixture
def pairs(tmp_path):
    """A folder of four images and labels; the last one is never the first that a run reads."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, (16, 32, 3), np.uint8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(rng.integers(0, 19, (16, 32), np.uint8)).save(tmp_path / f"labels/{name}.png")
    return tmp_path


def _label(pairs, value=0, size=(16, 32)):
    Image.fromarray(np.full(size, value, np.uint8)).save(pairs / "labels/d.png")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


FAULTS = {
    "id out of range": (lambda pairs: _label(pairs, 77), ["labels/d.png", "[77] are out of range", "cityscapes19"]),
    "sizes": (lambda pairs: _label(pairs, size=(16, 30)), ["labels/d.png is 30x16", "images/d.png is 32x16"]),
    "missing label": (lambda pairs: (pairs / "labels/d.png").unlink(), ["1 images of", "have no label", "'d'"]),
    "cut image": (lambda pairs: _cut(pairs / "images/d.png"), ["images/d.png cannot be read", "cut off"]),
    "empty folder": (lambda pairs: [path.unlink() for path in (pairs / "labels").iterdir()], ["label folder", "holds no image file"]),
}


@pytest.mark.parametrize(("fault", "workers"), [*((name, 0) for name in FAULTS), ("id out of range", 1)])
def test_data(fault, workers, pairs, tiny_config, capfd):
    spoil, words = FAULTS[fault]
    spoil(pairs)
    config = pairs / "faults.py"
    config.write_text(CONFIG.format(images=str(pairs / "images"), labels=str(pairs / "labels"), workers=workers))
    assert cli.main(["train", f"--config={config}", f"--workdir={pairs / 'out'}"]) == 3
    error = capfd.readouterr().err
    told = [line for line in error.splitlines() if line.startswith("segjax: ")]
    assert len(told) == 1 and all(word in told[0] for word in words) and "Traceback" not in error, error


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _largest(checkpoint):
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_flipped_bit_in_the_weights(finished, tmp_path, capsys):
    shutil.copytree(finished.workdir / "03-fda", tmp_path / "03-fda")
    _flip(tmp_path / "03-fda" / folder.WEIGHTS)
    assert cli.main(["evaluate", f"--config={finished.config}", "--stage=fda", f"--workdir={tmp_path}"]) == 4
    error = capsys.readouterr().err
    assert "weights.safetensors" in error and "sha256" in error and error.count("\n") == 1


@pytest.mark.parametrize("spoil", [_flip, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["flipped bit", "truncated"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(spoil, finished, tmp_path, capsys):
    for stage in ("01-source_only", "03-fda"):
        shutil.copytree(finished.workdir / stage, tmp_path / stage)
    place = tmp_path / "03-fda"
    for left in (folder.DONE, folder.WEIGHTS):
        (place / left).unlink()
    spoil(_largest(place / "checkpoints/4"))
    argv = ["train", f"--config={finished.config}", "--stage=fda", f"--workdir={place}"]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert "checkpoint 4 is damaged and skipped" in said and "resumed from step 2" in said
    assert folder.read_done(place)["weights_sha256"] == folder.read_done(finished.workdir / "03-fda")["weights_sha256"]
    (place / folder.DONE).unlink()
    for step in (2, 4):
        spoil(_largest(place / f"checkpoints/{step}"))
    assert cli.main(argv) == 4
    error = capsys.readouterr().err
    assert "no good checkpoint in" in error and "2 damaged" in error and error.count("\n") == 1
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["2", "4"]
