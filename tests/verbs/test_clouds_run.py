"""CLOUDS' whole system by one `segjax run`, tiny: a language model's prompts, a diffusion model's images, both stages, SAM, the report."""

import itertools
import json
import os
import pathlib
import signal
import textwrap

import numpy as np
import pytest
import tiny_diffusion

from segjax import cli
from segjax.runtime import loop
from segjax.verbs import folder, generated, networks, prompt_sources, zero_shot
from segjax.verbs.embedder import Embedder
from segjax.weights import safetensors_io

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SYSTEM = """
    import sys

    sys.path.insert(0, CONFIGS)
    import base
    import clouds
    from ml_collections import ConfigDict

    HEAD = dict(channels=32, mask_channels=8, decoder_channels=32, heads=2, encoder_layers=1, encoder_hidden=8, decoder_hidden=8)
    HEAD.update(decoder_layers=0, queries=20, points=1, fpn_levels=0, embed_dim=20)
    SGD = dict(name="sgd", lr=1e-2, weight_decay=0.0, clip_norm=None)  # AdamW: four times the operations


    def get_config():
        config = clouds.get_config("synthia,ema=every_step,head=text,ensemble=on")
        config.llm, config.sd, config.generated, config.weights, config.segmenter = LLM, SD, 5, CLIP, SAM
        config.clip, config.tokenizer = WHOLE, TOKENIZER
        config.steps, config.batch_size, config.log_every, config.checkpoint_every, config.evaluate_every = 2, 2, 1, 1, 0
        stages = config.stages
        with config.unlocked():
            own = {"captions": 1, "max_tokens": 8, "min_words": 1, "unit": 2, "count": 5}
            stages.prompts.update({**own, "seed": 5, "mesh": {"data": 1, "fsdp": 1}})
            stages.images.update({"steps": 2, "sampler": "ddpm", "devices": 1})
            scenes = {"make": base.STREET_SCENES, "size": (48, 64), "split": "train", "length": 4, "look": "day"}
            for stage in (stages.warmup, stages.joint):
                stage.model.update({**TOWER, **HEAD})
                stage.method.update({"points": 64, "jitter": ()})  # generated images have one
                stage.data.update({"crop": (32, 32), "workers": 0})
                stage.data.source = ConfigDict(scenes)
                stage.evaluate = ConfigDict({})
                stage.optimizer.update(SGD)
            stages.joint.evaluate.dusk = {**scenes, "look": "dusk", "split": "val", "length": 2}
            stages.joint.batch_size, stages.joint.data.target_batch_size = 2, 1
            stages.joint.data.target.resize = (32, 32)
            stages.joint.method.update({"segmenter": SEGMENTER, "min_area": 20, "places": 4, "chunk": 2})
        return config
"""
STAGES = ("prompts", "images", "warmup", "joint")
INSTRUCTION = "A photo of {number} road"


def command(config: str, workdir: pathlib.Path) -> list[str]:
    return ["run", f"--config={config}", f"--workdir={workdir}", f"--config.stages.prompts.instruction={INSTRUCTION}"]


def spec(path: pathlib.Path) -> dict:
    return json.loads(safetensors_io.read(path)[1]["model"])


@pytest.fixture(scope="module")
def config(goldens, tmp_path_factory) -> str:
    """The config's path; its CLIP and MobileSAM converted from the originals' tiny checkpoints by the commands of the docs."""
    place = tmp_path_factory.mktemp("clouds")
    clip, sam = place / "clip.safetensors", place / "sam.safetensors"
    public = goldens / "openclip_convnext/open_clip_model.safetensors"
    flags = ["--layout=clip_openai_vision", "--prefix=backbone"]
    assert cli.main(["convert", f"--input={public}", *flags, f"--output={clip}"]) == 0
    told = ["--set=decoder_heads=4", "--set=image_size=128"]
    assert cli.main(["convert", f"--input={goldens / 'mobile_sam/mobile_sam.pt'}", *told, f"--output={sam}"]) == 0
    tower = {f"backbone_{key}": value for key, value in spec(clip).items() if key != "make"}
    known = {"CONFIGS": str(CONFIGS), "LLM": str(goldens / "llama_hf"), "CLIP": str(clip), "SAM": str(sam)}
    known |= {"WHOLE": str(goldens / "openclip_convnext"), "TOKENIZER": str(goldens / "clip_hf_quickgelu")}
    known |= {"SD": str(tiny_diffusion.write(place / "sd", goldens)), "TOWER": tower, "SEGMENTER": spec(sam)}
    given = "".join(f"    {name} = {value!r}\n" for name, value in known.items())
    (place / "system.py").write_text(textwrap.dedent(given + SYSTEM))
    return str(place / "system.py")


@pytest.fixture(scope="module")
def whole(config, traced_once, tmp_path_factory) -> pathlib.Path:
    """The directory of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole")
    assert cli.main(command(config, workdir)) == 0
    return workdir


def places(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    return {name: workdir / f"{number:02d}-{name}" for number, name in enumerate(STAGES, 1)}


def results(workdir: pathlib.Path) -> dict:
    """What a run has found, without the time it took; the hashes are of prompts, images' manifest and weights."""
    return {name: {k: v for k, v in folder.read_done(place).items() if k != "seconds"} for name, place in places(workdir).items()}


def test_every_stage_reads_what_the_one_before_has_left(config, whole, capsys):
    found, place = results(whole), places(whole)
    inputs = {name: json.loads((place[name] / "config.json").read_text())["inputs"] for name in STAGES}
    assert json.loads((place["prompts"] / "manifest.json").read_text())["instruction"] == INSTRUCTION
    assert inputs["images"]["stages"] == {"prompts": {"prompts_sha256": found["prompts"]["prompts_sha256"]}}
    assert inputs["joint"]["stages"] == {"images": {"manifest_sha256": found["images"]["manifest_sha256"]}}
    assert list(inputs["joint"]["frozen"]["segmenter"]) == ["sam.safetensors"] and "Generated" in inputs["joint"]["data"][1]
    rows = [json.loads(line) for line in (place["joint"] / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/mask" in row]
    assert len(rows) == 2 and all(row["pseudo/prompts"] > 0 and 0 <= row["pseudo/labelled"] <= 1 for row in rows)
    learned, backbone = (
        safetensors_io.read(path)[0] for path in (place["joint"] / folder.WEIGHTS, pathlib.Path(config).with_name("clip.safetensors"))
    )
    assert all(np.array_equal(learned[name], value) for name, value in backbone.items()) and set(backbone) < set(learned)
    before = safetensors_io.read(place["warmup"] / folder.WEIGHTS)[0]
    assert any(not np.array_equal(learned[name], before[name]) for name in learned)
    page = (whole / "report.html").read_text()
    assert "warmup" in page and "joint" in page and found["joint"]["scores"]["dusk"]["images"] == 2
    capsys.readouterr()
    assert cli.main(command(config, whole)) == 0
    assert capsys.readouterr().out.count("nothing to do") == len(STAGES)


def test_the_words_lie_in_the_weights(config, whole, goldens, tmp_path):
    """Both stages' networks, `evaluate` and `predict` find them there; no CLIP is opened."""
    given, place = json.loads((places(whole)["warmup"] / "config.json").read_text())["inputs"]["words"], places(whole)
    network = networks.load(goldens / "openclip_convnext")
    encode = Embedder(network, batch_size=64, tokenizer=goldens / "clip_hf_quickgelu", name="clip").texts
    expected = zero_shot.vectors(zero_shot.classes("cityscapes19_words"), given["templates"], encode)
    for name in ("warmup", "joint"):
        flat = safetensors_io.read(place[name] / folder.WEIGHTS)[0]
        np.testing.assert_allclose(flat["batch_stats/words"], expected, atol=1e-6)
        assert networks.load(place[name] / folder.WEIGHTS).module.synonyms == (2, 2, 6, 6, 2, 2, 2, 2, 5, 10, 2, 1, 1, 2, 2, 2, 5, 2, 4)
    assert "words" not in json.loads((place["joint"] / "config.json").read_text())["inputs"]
    flags = [f"--config={config}", "--config.clip=gone", f"--workdir={whole}"]
    photograph = next((place["joint"] / "eval").glob("*/samples/*.image.jpg"))
    assert cli.main(["evaluate", *flags]) == 0
    again = json.loads(next((place["joint"] / "eval").glob("dusk-val.json")).read_text())
    assert again["means"] == results(whole)["joint"]["scores"]["dusk"]["means"]
    assert cli.main(["predict", *flags, f"--input={photograph}", f"--output={tmp_path}", "--no-overlay"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_killed_in_every_stage_it_ends_as_if_it_had_not_been(config, whole, tmp_path, monkeypatch):
    argv = command(config, tmp_path)

    def killing(real):
        """`real`, which asks the process to stop before it begins."""

        def called(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*arguments)

        return called

    for owner, name in ((prompt_sources._Local, "ask"), (generated.Generated, "save")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killing(getattr(owner, name)))
            assert cli.main(argv) == 75, name
    for stage in ("warmup", "joint"):
        calls, place = itertools.count(), places(tmp_path)[stage]
        with monkeypatch.context() as patch:
            stop = lambda self, step, place=place, calls=calls: "SIGTERM" if (place / "lock").exists() and next(calls) == 1 else None
            patch.setattr(loop.Preemption, "requested", stop)
            assert cli.main(argv) == 75, stage
        assert folder.read_done(place) is None
    assert cli.main(argv) == 0
    assert results(tmp_path) == results(whole)
    for name in ("warmup", "joint"):
        a, b = ((places(workdir)[name] / folder.WEIGHTS).read_bytes() for workdir in (tmp_path, whole))
        assert a == b, name
