"""`segjax personalize` and `generate`, by hand and as stages of a run: what they leave, stopped anywhere, and mistakes that people make."""

import itertools
import json
import os
import pathlib
import shutil
import textwrap

import jax
import numpy as np
import pytest
import tiny_diffusion
from PIL import Image

from segjax import cli
from segjax.data.readers.generated import Generated
from segjax.errors import DataError
from segjax.generation import directory, prompt_plans
from segjax.nets import lora
from segjax.runtime import loop
from segjax.runtime import mesh as meshes
from segjax.verbs import config_file, folder, personalize, personalize_data, personalize_work
from segjax.weights import safetensors_io

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SYSTEM = """
    import sys

    sys.path.insert(0, CONFIGS)
    import base
    from ml_collections import ConfigDict

    MODEL = {"make": "verbs_tiny_net:Tiny", "num_classes": 19, "dtype": "float32"}
    SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


    def get_config():
        config = base.run("datum", steps=4, batch_size=2)
        config.log_every, config.checkpoint_every, config.mesh.data = 1, 2, 2
        scenes = {"make": base.STREET_SCENES, "size": (32, 64)}
        dusk = {**scenes, "look": "dusk", "split": "train", "length": 3}
        words = {"prompt": "a photo of a sks urban scene", "class_prompt": "a photo of an urban scene", "class_count": 3}
        size = {"short_side": 12, "steps": 4, "export_every": 2, "checkpoint_every": 1, "log_every": 1}
        personalize = {"verb": "personalize", "model": STABLE, "image": dusk, "index": 1, **words, **size, "optimizer": SGD}
        generate = {"verb": "generate", "model": "{stage:personalize}/step_4", "plan": "things", "count": 24}
        for name, values in {"personalize": personalize, "generate": generate}.items():
            config.stages[name] = ConfigDict(values)
            config.order = (*config.order, name)
        target = {"make": "segjax.data.readers.generated:Generated", "root": "{stage:generate}", "labelled": False}
        source = {**scenes, "look": "day", "split": "train", "length": 4}
        scored = {"dusk": {**scenes, "look": "dusk", "split": "val", "length": 2}}
        data = {"source": source, "target": target, "crop": (8, 8)}
        parts = {"model": MODEL, "optimizer": SGD, "data": data, "evaluate": scored}
        host = {"make": "segjax.methods.dacs:make", "threshold": 0.1}
        base.add_stage(config, "adapt", method=host, **parts, steps=4, checkpoint_every=2, log_every=1)
        return config
"""
PLACES = ("01-personalize", "02-generate", "03-adapt")


@pytest.fixture(scope="module")
def stable(tmp_path_factory, goldens):
    return tiny_diffusion.write(tmp_path_factory.mktemp("model") / "stable", goldens, up_attention=False)


@pytest.fixture(scope="module")
def system(tiny_config, stable) -> str:
    path = pathlib.Path(tiny_config).with_name("datum_system.py")
    path.write_text(textwrap.dedent(SYSTEM).replace("CONFIGS", repr(str(CONFIGS))).replace("STABLE", repr(str(stable))))
    return str(path)


@pytest.fixture(scope="module")
def whole(system, traced_once, tmp_path_factory) -> pathlib.Path:
    """The directory of a run that nothing disturbed. Read it only."""
    workdir = tmp_path_factory.mktemp("whole")
    assert cli.main(["run", f"--config={system}", f"--workdir={workdir}"]) == 0
    return workdir


def results(workdir: pathlib.Path) -> dict:
    """What a run has left, byte for byte where bytes do not depend on the time of the day."""
    done = {place: {k: v for k, v in folder.read_done(workdir / place).items() if k != "seconds"} for place in PLACES}
    files = [*workdir.glob("02-generate/im_*.png"), *workdir.glob("01-personalize/step_*/**/*"), workdir / "02-generate/manifest.jsonl"]
    return {**done, **{str(path.relative_to(workdir)): path.read_bytes() for path in files if path.is_file()}}


def test_every_step_directory_is_a_whole_model(whole, stable):
    place = whole / "01-personalize"
    assert sorted(path.name for path in place.glob("step_*")) == ["step_2", "step_4"] and not list(place.glob(".step*"))
    before, two, four = (directory.read(path) for path in (stable, place / "step_2", place / "step_4"))
    for name, same in (("vae", True), ("unet", False), ("text", False)):
        files = [getattr(model, name).file.read_bytes() for model in (before, two, four)]
        assert (len(set(files)) == 1) == same and len(set(files)) in (1, 3), name
    for path in ("tokenizer", "scheduler", "unet/config.json", "text_encoder/config.json", "vae/config.json"):
        for file in [stable / path] if (stable / path).is_file() else (stable / path).iterdir():
            ours = place / "step_4" / file.relative_to(stable)
            read = lambda file: json.loads(file.read_text()) if file.suffix == ".json" else file.read_bytes()
            assert read(ours) == read(file), file
    arrays = safetensors_io.flatten(before.unet.variables), safetensors_io.flatten(four.unet.variables)
    steps = [np.abs(arrays[1][path] - arrays[0][path]).max() for path in arrays[0]]
    assert max(steps) < 0.4 and np.mean(np.array(steps) > 1e-6) > 0.9  # four steps of 0.1 down gradients of one's length at most
    done = folder.read_done(place)
    assert (done["steps"], done["product"]) == (4, "step_4/model_index.json") and done["model_sha256"] == four.sha256()
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    assert sum("loss/class" in row for row in rows) == 4 and sum("export/seconds" in row for row in rows) == 2
    assert len(Generated(str(place / "class_images"))) == 3


def test_diffusers_loads_what_is_written(whole):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    import diffusers

    place = whole / "01-personalize/step_4"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(place, safety_checker=None)
    weight = safetensors_io.read(place / "unet/diffusion_pytorch_model.safetensors")[0]["conv_in.bias"]
    np.testing.assert_array_equal(pipeline.unet.conv_in.bias.detach().numpy(), weight)
    assert pipeline("a photo of sks cars", num_inference_steps=5, height=8, width=8).images[0].size == (8, 8)


def test_the_generated_set_is_the_target(whole):
    rows = [json.loads(line) for line in (whole / "02-generate/manifest.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows[:2]] == ["a photo of sks traffic lights", "a photo of sks traffic signs"]
    assert [row["class"] for row in rows] == [list(prompt_plans.THINGS)[n % 10] for n in range(24)] and rows[0]["width"] == 8
    assert rows[0]["weights_sha256"] == folder.read_done(whole / PLACES[0])["model_sha256"]
    assert json.loads((whole / "03-adapt/config.json").read_text())["inputs"]["stages"] == {
        "generate": {"manifest_sha256": folder.read_done(whole / PLACES[1])["manifest_sha256"]}
    }
    assert len(Generated(str(whole / PLACES[1]), prefix=3)) == 3  # the study of the set's size
    table = (whole / "results.md").read_text()
    assert "| adapt" in table and "personalize" in (whole / "report.html").read_text()


def test_stopped_in_every_stage_it_ends_as_if_it_had_not_been(system, whole, tmp_path, monkeypatch):
    argv = ["run", f"--config={system}", f"--workdir={tmp_path}"]

    def stop_at(place: str, number: int):
        """Asks to stop at the number-th step or dispatch once the file or folder `place` is there."""
        monkeypatch.undo()
        calls = itertools.count()
        here = lambda: (tmp_path / place).exists()
        monkeypatch.setattr(loop.Preemption, "requested", lambda self, step: "SIGTERM" if here() and next(calls) == number else None)

    write, calls = personalize_work.directory.write, itertools.count()

    def killed(path, model):  # in the middle of the first export, after the checkpoint of its step
        write(path, model)
        if next(calls) == 0:
            raise KeyboardInterrupt

    shutil.copytree(whole / "01-personalize/class_images", tmp_path / "01-personalize/class_images")  # made, and stopped before a step
    monkeypatch.setattr(personalize_work.directory, "write", killed)
    assert cli.main(argv) == 130 and not (tmp_path / "01-personalize/step_2").exists()
    for place, number in ((PLACES[1], 2), (PLACES[2], 1)):
        stop_at(f"{place}/lock", number)
        assert cli.main(argv) == 75, place
        assert (tmp_path / "01-personalize/step_2/model_index.json").exists() and folder.read_done(tmp_path / place) is None
        if place == PLACES[1]:
            assert len(list((tmp_path / place).glob("*.png"))) in (8, 16)
            with pytest.raises(DataError, match=r"02-generate is half a set, the generation of its 24 images was stopped"):
                Generated(str(tmp_path / place))
    monkeypatch.undo()
    assert cli.main(argv) == 0
    assert results(tmp_path) == results(whole)


def test_a_changed_model_or_count_is_noticed(system, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    argv = ["run", f"--config={system}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(argv) == 0 and capsys.readouterr().out.count("nothing to do") == 3  # moved, and still the same run
    assert cli.main([*argv, "--config.stages.personalize.steps=6"]) == 2
    assert "steps: 4 -> 6" in capsys.readouterr().err
    assert cli.main([*argv, "--config.stages.generate.plan=stuff"]) == 2
    assert "plan: things -> stuff" in capsys.readouterr().err
    assert cli.main([*argv, "--config.stages.generate.plan=stuff", "--on-change=continue"]) == 2
    error = capsys.readouterr().err
    assert "02-generate: its images were made with other settings (prompts_sha256" in error and error.count("\n") == 1


def test_half_a_generated_set_is_refused(whole, tmp_path):
    shutil.copytree(whole / PLACES[1], tmp_path / "set")
    settings = json.loads((tmp_path / "set/generation.json").read_text())
    assert "unfinished" not in settings
    (tmp_path / "set/generation.json").write_text(json.dumps({**settings, "unfinished": 20}))
    with pytest.raises(
        DataError, match=r"set is half a set, the generation of its 20 images was stopped: start the same `segjax` command again"
    ):
        Generated(str(tmp_path / "set"))
    (tmp_path / "set/generation.json").write_text(json.dumps(settings))
    (tmp_path / "set/im_000005_p05.png").unlink()
    with pytest.raises(DataError, match=r"names 1 of 24 images, first im_000005_p05.png, that are not in"):
        Generated(str(tmp_path / "set"))


def test_adapters_are_written_merged(stable, tmp_path):
    model = directory.read(stable)
    params = {}
    for name in ("unet", "text"):
        fresh = jax.eval_shape(lambda params: lora.adapters(jax.random.key(0), params, 2), getattr(model, name).variables["params"])
        params[f"{name}_lora"] = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), fresh)
    personalize_work.export(model, params, 1.5, tmp_path / "out")
    for name, file in (("unet", "unet/diffusion_pytorch_model"), ("text", "text_encoder/model")):
        before, after = (safetensors_io.read(place / f"{file}.safetensors")[0] for place in (stable, tmp_path / "out"))
        changed = {key for key in before if not np.array_equal(before[key], after[key])}
        attention = {key for key in before if ("attn" in key and key.endswith("weight"))}
        assert changed == attention and len(changed) > 3, name
        for key in changed:
            np.testing.assert_allclose(after[key] - before[key], 1.5 * 2, rtol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_latents_made_before_are_those_of_the_steps(stable):
    spec = {"cache": 5, "seed": 4, "crop": 8}
    model = directory.read(stable)
    image = np.random.default_rng(0).integers(0, 255, (1, 12, 20, 3)).astype(np.uint8)
    found = personalize_data.cached(spec, model.vae, {"instance": image}, meshes.make_mesh(2))["instance_moments"]
    alone = personalize_data.cached({**spec, "cache": 1}, model.vae, {"instance": image}, meshes.make_mesh(2))["instance_moments"]
    assert found["mean"].shape == (5, 4, 4, 4) and len({row.tobytes() for row in found["mean"]}) > 2
    np.testing.assert_array_equal(found["mean"][:1], alone["mean"])


@pytest.mark.parametrize("plan", prompt_plans.PLANS)
def test_prompt_plans(plan):
    texts = [prompt.text for prompt in prompt_plans.prompts(plan, "sks")]
    first = {
        "things": (10, "a photo of sks traffic lights"),
        "stuff": (9, "a photo of sks road"),
        "both": (19, "a photo of sks traffic lights"),
        "dash-cam": (10, "a photo of sks traffic lights seen from the dash cam"),
        "scene": (1, "a photo of a sks urban scene"),
        "car-scene": (1, "a photo of sks scene from a car"),
        "in-car-scene": (10, "a photo of traffic lights in a sks scene from a car"),
    }
    assert (len(texts), texts[0]) == first[plan] and len(set(texts)) == len(texts)
    if plan == "things":
        released = "traffic lights, traffic signs, persons, riders, cars, trucks, trains, buses, motorcycles, bicycles"
        assert texts == [f"a photo of sks {name}" for name in released.split(", ")]


LONG = "a photo of a sks urban scene " * 20


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--crop=16"], 3, ["image.png is 20x10, 24x12 at short_side=12: smaller than the crop 16x16", "--short-side"]),
        (["--short-side=0", "--crop=12"], 3, ["image.png is 20x10: smaller than the crop 12x12"]),
        ([f"--prompt={LONG}"], 2, ["--prompt: 'a photo of a sks", "tokens with begin and end, the model reads 77: shorten it"]),
        ([f"--class-prompt={LONG}"], 2, ["--class-prompt: 'a photo"]),
        (["--image={tmp}/none.png"], 3, ["none.png does not exist"]),
        (["--model={tmp}/vae"], 4, ["vae: holds", "expected diffusion_pytorch_model"]),
        (["--model={tmp}/scheduler"], 4, ["scheduler: no scheduler: scheduler_config.json cannot be read"]),
        (["--model={tmp}/tokenizer"], 4, ["has no folder tokenizer"]),
        (["--model={tmp}/index"], 4, ["not a diffusers directory"]),
        (["--crop=7"], 2, ["--crop=7: expected a multiple of 2"]),
        (["--steps=0"], 2, ["--steps=0: expected a whole number, 1 or more"]),
        (["--batch-size=3", "--accumulate=2"], 2, ["--accumulate=2 does not divide --batch-size=3"]),
        (["--batch-size=3", "--devices=2"], 2, ["--batch-size=3 is not divisible by the 2 devices"]),
        (["--class-images={tmp}"], 2, ["--class-images: say what they show with --class-prompt"]),
        (["--class-prompt=a street", "--class-images={tmp}/small"], 3, ["a.png is 4x4: expected class images of one size, 8x8 or larger"]),
        (["--dtype=float8"], 2, ["--dtype='float8'"]),
    ],
)
def test_a_users_mistake_is_one_line(stable, tmp_path, capsys, flags, code, words):
    Image.fromarray(np.full((10, 20, 3), 90, np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "small").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "small/a.png")
    parts = {"vae": "vae/diffusion_pytorch_model.safetensors", "scheduler": directory.SCHEDULER, "index": directory.INDEX}
    for part in [part for part in (*parts, "tokenizer") if f"--model={{tmp}}/{part}" in flags]:
        shutil.copytree(stable, tmp_path / part)
        shutil.rmtree(tmp_path / part / "tokenizer") if part == "tokenizer" else os.unlink(tmp_path / part / parts[part])
    given = [f"--model={stable}", f"--image={tmp_path}/image.png", f"--output={tmp_path}/out", "--short-side=12", "--devices=1"]
    assert cli.main(["personalize", *given, *(flag.replace("{tmp}", str(tmp_path)) for flag in flags)]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[transformers]")]  # its greeting, once
    assert len(error) == 1 and error[0].startswith("segjax: ") and all(word in error[0] for word in words), error
    assert not list((tmp_path / "out").glob("step_*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"personalize.promt": "x"}, ["stages.personalize.promt", "did you mean 'prompt'"]),
        ({"personalize.image": ""}, ["stages.personalize.image=''", "expected the target image"]),
        ({"personalize.cache": -1}, ["stages.personalize.cache=-1"]),
        ({"generate.plan": "thigns"}, ["plan='thigns'", "things, stuff"]),
        ({"generate.prompts": "x.txt"}, ["give either config.stages.generate.prompts, a file, or config.stages.generate.plan"]),
        ({"generate.size": (32,)}, ["stages.generate.size=(32,)"]),
        ({"generate.model": "{stage:adapt}"}, ["generate.model='adapt'", "expected an earlier stage: personalize"]),
    ],
)
def test_a_mistake_in_a_stage_does_not_wait_for_the_first(changes, words, system, tmp_path, monkeypatch, capsys):
    load = config_file.load

    def changed(*args):
        config = load(*args)
        with config.unlocked():
            for path, value in changes.items():
                stage, key = path.split(".")
                if key in config.stages[stage]:
                    del config.stages[stage][key]
                config.stages[stage][key] = value
        return config

    monkeypatch.setattr(config_file, "load", changed)
    assert cli.main(["run", f"--config={system}", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error
    assert not list(tmp_path.iterdir())


def test_the_step_at_published_sizes_by_shapes_alone(system):
    """Stable Diffusion 1.x over a mesh of two by four: UNet and text encoder whole, state split."""
    config = config_file.load(system)
    with config.unlocked():
        config.stages.personalize.batch_size = 8
    shapes = personalize.step_shapes(config, "personalize", meshes.make_mesh(2, 4))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes.state.params[name])) for name in ("unet", "text")}
    assert count == {"unet": 859_520_964, "text": 123_060_480}
    assert shapes.frozen["instance_images"].shape == (1, 1024, 2048, 3) and shapes.frozen["ids"].shape == (2, 77)
    assert "fsdp" in shapes.state.params["unet"]["time_embedding"]["linear_2"]["kernel"].sharding.spec and shapes.batch[
        "element"
    ].shape == (8,)
