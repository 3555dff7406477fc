"""`segjax generate`: what it writes, that stopping it changes nothing, and the mistakes that people make."""

import json
import os
import signal

import numpy as np
import pytest
import tiny_diffusion
from PIL import Image

from segjax import cli
from segjax.data.readers.generated import Generated
from segjax.generation import directory
from segjax.verbs import generated

PROMPTS = [
    {"prompt": "a photo of sks traffic lights", "class": "traffic light"},
    {"prompt": "a photo of sks cars", "class": "car"},
    {"prompt": "a rainy street at night"},
]
ON_ONE, ON_EIGHT = ("--devices=1", "--batch=4"), ("--devices=8", "--batch=16")


@pytest.fixture(scope="module")
def model(tmp_path_factory, goldens):
    return tiny_diffusion.write(tmp_path_factory.mktemp("model"), goldens, up_attention=False)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n\n" for prompt in PROMPTS))
    return path


@pytest.fixture(scope="module")
def generate(model, prompts):
    def run(output, *more):
        flags = [f"--model={model}", f"--prompts={prompts}", f"--output={output}", "--steps=2", "--sampler=ddpm", "--seed=3"]
        return cli.main(["generate", *flags, "--size=12x8", *more])

    return run


@pytest.fixture(scope="module")
def unbroken(generate, traced_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert generate(folder, "--count=10", *ON_EIGHT) == 0
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_images_and_manifest(unbroken, model):
    rows = [json.loads(line) for line in (unbroken / "manifest.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(10))
    assert rows[4]["image"] == "im_000004_p01.png" and rows[4]["prompt"] == "a photo of sks cars" and rows[4]["class"] == "car"
    assert rows[2]["class"] == "" and rows[4]["seed"] == 3 and rows[4]["weights_sha256"] == directory.read(model).sha256()
    assert {key: rows[0][key] for key in ("steps", "guidance", "sampler", "width", "height", "negative_prompt", "dtype", "unit")} == {
        "steps": 2, "guidance": 7.5, "sampler": "ddpm", "width": 12, "height": 8, "negative_prompt": "", "dtype": "float32", "unit": 1,
    }  # fmt: skip
    pixels = [np.asarray(Image.open(unbroken / row["image"])) for row in rows]
    assert all(image.shape == (8, 12, 3) and image.std() > 5 for image in pixels)
    assert len({image.tobytes() for image in pixels}) == 10
    data = Generated(str(unbroken))
    assert len(data) == 10 and data.manifest == rows and np.array_equal(data[4]["image"], pixels[4])
    assert {path.name for path in unbroken.iterdir()} == {"manifest.jsonl", "generation.json", *(row["image"] for row in rows)}


def test_killed_and_started_again_on_another_mesh_it_writes_the_same_bytes(generate, unbroken, tmp_path, monkeypatch, capsys):
    """Killed in the middle of writing an image on one device, with a row half written; goes on with eight."""
    real, calls = os.fsync, []

    def kill(number):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(number)

    monkeypatch.setattr(generated.os, "fsync", kill)
    assert generate(tmp_path, "--count=10", *ON_ONE) == cli.INTERRUPTED
    monkeypatch.undo()
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 2 and list(tmp_path.glob(".*.tmp"))
    (tmp_path / "im_000000_p00.png").write_bytes(b"damaged")
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write('{"image": "im_00')
    capsys.readouterr()
    assert generate(tmp_path, "--count=10", *ON_EIGHT) == 0
    assert "1 of 10 images are there already" in capsys.readouterr().out
    assert contents(tmp_path) == contents(unbroken)


def test_a_signal_ends_it_after_whole_images_and_a_larger_count_adds(generate, unbroken, tmp_path, monkeypatch, capsys):
    save = generated.Generated.save

    def stop(self, image, row):
        save(self, image, row)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(generated.Generated, "save", stop)
    assert generate(tmp_path, "--count=9", *ON_ONE) == 75
    monkeypatch.undo()
    written = contents(tmp_path)
    rows = written.pop("manifest.jsonl").decode().splitlines()
    assert 1 <= len(rows) < 9 and len(written) == len(rows) + 1
    assert f"SIGTERM after {len(rows)} of 9 images: start the same command again" in capsys.readouterr().err
    assert generate(tmp_path, "--count=10", *ON_ONE) == 0
    assert contents(tmp_path) == contents(unbroken)
    capsys.readouterr()
    assert generate(tmp_path, "--count=10", *ON_ONE) == 0  # nothing is left to do
    assert "10 of 10 images are there already" in capsys.readouterr().out and contents(tmp_path) == contents(unbroken)


def test_other_settings_are_refused(generate, unbroken, capsys):
    before = contents(unbroken)
    assert generate(unbroken, "--count=10", "--guidance=2", *ON_ONE) == 2
    assert "guidance: 7.5 -> 2.0" in capsys.readouterr().err and contents(unbroken) == before


def test_the_negative_prompt_counts(generate, unbroken, tmp_path):
    assert generate(tmp_path, "--negative=a photo", *ON_ONE) == 0
    one, other = (np.asarray(Image.open(place / "im_000000_p00.png")) for place in (tmp_path, unbroken))
    assert (one != other).mean() > 0.1 and len(list(tmp_path.glob("*.png"))) == len(PROMPTS)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--prompts={tmp}/none.txt"], 3, "none.txt: cannot be read"),
        (["--prompts={tmp}/empty.txt"], 3, "holds no prompt"),
        (["--prompts={tmp}/bad.jsonl"], 3, 'bad.jsonl:2: {"text": "x"}: expected'),
        (["--model={tmp}"], 4, "not a diffusers directory"),
        (["--count=0"], 2, "--count=0"),
        (["--batch=0"], 2, "--batch=0"),
        (["--seed=-1"], 2, "--seed=-1"),
        (["--size=9x8"], 2, "--size=9x8: expected multiples of 2"),
        (["--steps=0"], 2, "steps=0"),
        (["--guidance=nan"], 2, "--guidance=nan"),
        (["--sampler=heun"], 2, "sampler 'heun'"),
        (["--dtype=float8"], 2, "--dtype='float8'"),
        (["--devices=9"], 2, "9 devices"),
        (["--variant=fp16"], 4, "expected variant 'fp16'"),
    ],
)
def test_a_users_mistake_is_one_line(generate, tmp_path, capsys, flags, code, words):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "y"}\n{"text": "x"}\n')
    assert generate(tmp_path / "out", *(flag.format(tmp=tmp_path) for flag in flags)) == code
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
