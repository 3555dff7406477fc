"""The data of a stage as a config spells it: mixtures, class sampling, crops of several kinds, and a run over broken files."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from segjax import cli
from segjax.errors import ConfigError, DataError
from segjax.verbs import build, config_file, folder, train

SCENES = {"make": "segjax.data.procedural:StreetScenes", "size": (32, 64), "length": 6}
RARE = {"make": "segjax.data.sampling:rare_class", "min_pixels": 20, "statistics": ""}


def stage_with(tiny_config, **data):
    config = config_file.load(tiny_config)
    with config.unlocked():
        config.stages.source_only.data = ConfigDict({"source": SCENES, "crop": (16, 32), **data})
    return build.stage(config, "source_only")


def test_everything_at_once(tiny_config, tmp_path):
    parts = ({**SCENES, "weight": 2, "sampling": RARE}, {**SCENES, "look": "dusk", "weight": 1, "repeat": None})
    stage = stage_with(
        tiny_config,
        source={"make": "segjax.data.mixture:Mixture", "parts": parts},
        target={**SCENES, "labelled": False},
        source_crops=({"resize": (20, 40)}, {"resize": (32, 64), "scale": (0.9, 1.0)}),
        target_crops={"crop": (24, 48)},
        quality={"max_share": 0.75},
        part_ids=True,
        workers=0,
    )
    data = build.training_data(stage)
    assert [part.weight for part in data.source.parts] == [2, 1] and data.source.parts[0].sampling.min_pixels == 20
    assert [rule.resize for rule in data.streams[0].rules] == [(20, 40), (32, 64)] and data.streams[0].rules[1].quality.max_share == 0.75
    batches = train._batches(stage, data.streams, tmp_path, train.robust.Ledger(), 0)
    shapes = {key: value.shape for key, value in next(batches).items()}
    batches.close()
    assert shapes == {"source_image": (2, 16, 32, 3), "source_label": (2, 16, 32), "source_part": (2,), "target_image": (2, 24, 48, 3)}
    assert list((tmp_path / "statistics").glob("*/stats.json"))


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"source": {"make": "segjax.data.mixture:Mixture", "parts": (SCENES, {**SCENES, "lengt": 3})}}, ConfigError, "parts[1].lengt: "),
        ({"source": {"make": "segjax.data.mixture:Mixture", "parts": ()}}, ConfigError, "needs parts"),
        ({"sampling": {**RARE, "temprature": 1}}, ConfigError, "data.sampling.temprature: rare_class takes no such argument: did you mean"),
        ({"sampling": {**RARE, "temperature": 0}}, ConfigError, "data.sampling.temperature=0"),
        ({"source_crop": {}}, ConfigError, "data.source_crop: streams takes no such argument: did you mean 'source_crops'"),
        ({"source_crops": {"corp": (4, 4)}}, ConfigError, "no 'corp'"),
        ({"source_crops": {"resize": (8, 8)}}, DataError, "lower data.crop or raise data.resize"),
        ({"broken": "ignore"}, ConfigError, "data.broken='ignore'"),
        ({"crop": (16,)}, ConfigError, "data.crop=(16,)"),
    ],
)
def test_mistakes(tiny_config, data, error, words):
    with pytest.raises(error) as caught:
        build.training_data(stage_with(tiny_config, **data))
    assert words in str(caught.value), caught.value


CONFIG = """
    import sys

    sys.path.insert(0, PLACE)
    import tiny


    def get_config():
        config = tiny.get_config()
        data = config.stages.source_only.data
        data.source = {"make": "segjax.data.folders:FolderDataset", "images": IMAGES, "labels": LABELS, "encoding": "trainId"}
        data.scale = (1.0, 1.5)
        return config
"""


@pytest.fixture(scope="module")
def planted(tiny_config, tmp_path_factory) -> str:
    """A config over a folder of eight pairs, one image of it cut off."""
    place, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    for kind, shape, top in (("images", (40, 70, 3), 256), ("labels", (40, 70), 19)):
        (place / kind).mkdir()
        for n in range(8):
            Image.fromarray(rng.integers(0, top, shape).astype(np.uint8)).save(place / kind / f"{n}.png")
    cut = place / "images" / "3.png"
    cut.write_bytes(cut.read_bytes()[:300])
    text = "\n".join(line[4:] for line in CONFIG.splitlines())
    for word, value in (("PLACE", pathlib.Path(tiny_config).parent), ("IMAGES", place / "images"), ("LABELS", place / "labels")):
        text = text.replace(word, repr(str(value)))
    (place / "planted.py").write_text(text)
    return str(place / "planted.py")


def test_a_run_over_a_broken_file(planted, tmp_path, capsys):
    def run(place, *flags):
        flags = [f"--config.stages.source_only.data.{flag}" for flag in flags]
        return cli.main(["train", f"--config={planted}", "--stage=source_only", f"--workdir={place}", *flags])

    assert run(tmp_path / "raise") == 3
    assert "3.png cannot be read" in capsys.readouterr().err
    assert run(tmp_path / "cap", "broken=replace", "broken_share=0.1") == 3
    assert "1 of the 8 source records are broken, more than data.broken_share=0.1" in capsys.readouterr().err
    place, flags = tmp_path / "replace", ("broken=replace", "broken_share=0.2")
    assert run(place, *flags) == 0
    assert "1 records could not be read and others took their place" in capsys.readouterr().out
    done = folder.read_done(place)
    assert done["broken_records"] == 1
    assert [json.loads(line)["name"] for line in (place / train.BROKEN).read_text().splitlines()] == ["3.png"]
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("data/broken") == 1 for row in rows)
    # Interrupted after two of four steps, it ends with the same weights.
    for left in ("done.json", "weights.safetensors"):
        (place / left).unlink()
    shutil.rmtree(place / "checkpoints/4")
    assert run(place, *flags) == 0
    assert folder.read_done(place)["weights_sha256"] == done["weights_sha256"]
    assert len((place / train.BROKEN).read_text().splitlines()) == 1
