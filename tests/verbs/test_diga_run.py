"""DiGA's whole system by one `segjax run`: a trained translator, warm-up, labels, centroids and self-training, tiny."""

import json
import pathlib
import textwrap

import numpy as np
import pytest

from segjax import cli
from segjax.verbs import folder
from segjax.weights import safetensors_io

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SYSTEM = """
    import sys

    sys.path.insert(0, CONFIGS)
    import base
    import diga
    from ml_collections import ConfigDict

    MODEL = {"make": "verbs_tiny_net:Tiny", "num_classes": 19, "dtype": "float32"}
    SGD = {"name": "sgd", "lr": 1e-2, "momentum": 0.0}
    METHOD = {"translator": "gan", "second_view": "translated"}  # photometric views are not what a stage leaves to another


    def get_config():
        config = base.run("diga", steps=2, batch_size=2)
        config.log_every, config.mesh.data = 1, 1
        scenes = {"make": base.STREET_SCENES, "size": (32, 32), "split": "train", "length": 4}
        truth = {**scenes, "look": "dusk"}
        kit = diga.Kit(
            config,
            shared={
                "model": MODEL,
                "optimizer": SGD,
                "evaluate": {"dusk": {**truth, "split": "val", "length": 2}},
            },
            data={"source": {**scenes, "look": "day"}, "crop": (32, 32)},
            warm={"method": METHOD, "data": {}},
            train={"method": METHOD, "data": {}},
            target={**truth, "labelled": False},
            truth=truth,
            size=(16, 16),
        )
        diga._translator(kit, "gan", "diga", {})
        small = config.stages.translator
        small.optimizer = ConfigDict(SGD)
        small.steps, small.model.width, small.model.blocks, small.method.judge_width, small.method.judge_scales = 2, 2, 1, 2, 1
        diga._rows(kit, "no_symmetric")  # the row "diga" repeats the last stages
        return config
"""
STAGES = ("translator", "warmup", "pseudo", "centroids", "selftrain")


@pytest.fixture(scope="module")
def config(tiny_config) -> str:
    path = pathlib.Path(tiny_config).with_name("tiny_diga.py")
    path.write_text(textwrap.dedent(SYSTEM).replace("CONFIGS", repr(str(CONFIGS))))
    return str(path)


def test_every_stage_reads_what_the_one_before_has_left(config, tmp_path, capsys):
    argv = ["run", f"--config={config}", f"--workdir={tmp_path}"]
    assert cli.main(argv) == 0
    places = {name: tmp_path / f"{number:02d}-{name}" for number, name in enumerate(STAGES, 1)}
    done = {name: folder.read_done(place) for name, place in places.items()}
    assert all(done.values())
    read = lambda name: json.loads((places[name] / "config.json").read_text())["inputs"]
    translator = {"weights.safetensors": done["translator"]["weights_sha256"]}
    assert read("warmup")["frozen"] == {"translator": translator}
    frozen = {"translator": translator, "centroids": {"centroids.safetensors": done["centroids"]["centroids_sha256"]}}
    assert read("selftrain")["frozen"] == frozen
    assert read("selftrain")["stages"]["pseudo"] == {"labels_sha256": done["pseudo"]["labels_sha256"]}
    rows = [json.loads(line) for line in (places["selftrain"] / "metrics.jsonl").read_text().splitlines()]
    shares = [row["consensus/share"] for row in rows if "consensus/share" in row]
    assert len(shares) == 2 and all(0 < share <= 1 for share in shares)
    trained = json.loads((places["translator"] / "metrics.jsonl").read_text().splitlines()[0])
    assert "loss/edge" in trained and "loss/perceptual" not in trained  # there is no weight, so no VGG19 either
    kept, metadata = safetensors_io.read(places["translator"] / folder.WEIGHTS)
    assert {name.split("/")[1] for name in kept} == {"encoder", "decoder"} and all(np.isfinite(value).all() for value in kept.values())
    assert json.loads(metadata["model"])["width"] == 2
    capsys.readouterr()
    assert cli.main(argv) == 0 and capsys.readouterr().out.count("nothing to do") == len(STAGES)
    assert cli.main(["evaluate", f"--config={config}", f"--workdir={tmp_path}", "--stage=translator"]) == 2
    error = capsys.readouterr().err
    assert "translator" in error and error.count("\n") == 1
