"""`segjax embed` end to end over a tiny CLIP: vectors, scores, class maps, and every refusal in one line."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image
from processes import in_two

from segjax import cli
from segjax.data.clip_images import centre_square, stretched
from segjax.generation.tokens import Tokenizer
from segjax.nets.clip import normalized
from segjax.verbs import embed, networks, zero_shot

CLASSES = "0: road, street\n1: sky\n2: {brace}\n"
PROMPTS = ("a photo of a {}.", "there is a {} in the scene")


@pytest.fixture(scope="module")
def model(goldens):
    return goldens / "clip_hf_quickgelu"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    (place / "day").mkdir()
    for number, shape in enumerate([(50, 70), (96, 64), (48, 48)]):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(shape[::-1])
        smooth.save(place / "day" / f"{number}.png")
    return place


def _embed(model, output, *options):
    return cli.main(["embed", f"--model={model}", f"--output={output}", "--batch-size=2", *options])


def _reference(network, variables, images, texts, tokenizer):
    module = network.module
    both = jax.jit(lambda v, i, t: module.apply(v, i, t))(variables, np.stack(images).astype(np.float32) / 255, tokenizer(texts))
    return np.asarray(both["image_embeds"]), np.asarray(both["text_embeds"]), float(np.exp(variables["params"]["logit_scale"]))


def test_vectors_scores_and_maps(model, photographs, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text(CLASSES)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "texts.txt").write_text("a road\n\nthe sky\n")
    options = ["--classes", "classes.txt", "--templates", "prompts.txt", "--texts", "texts.txt"]
    options = [str(tmp_path / option) if option.endswith(".txt") else option for option in options]
    code = _embed(model, tmp_path / "out", f"--images={photographs}", *options, "--text=third", "--dense", "--dense-size=64x48")
    assert code == 0
    found, said = np.load(tmp_path / "out" / "images.npz"), np.load(tmp_path / "out" / "texts.npz")
    assert found["names"].tolist() == ["day/0", "day/1", "day/2"] and said["texts"].tolist() == ["a road", "the sky", "third"]
    network = networks.load(model)
    words = ["road", "street", "sky", "{brace}"]
    prompts = [prompt.replace("{}", word) for word in words for prompt in PROMPTS]
    images = [centre_square(np.asarray(Image.open(photographs / f"{name}.png")), 48) for name in found["names"]]
    reference = _reference(network, network.variables, images, ["a road", "the sky", "third", *prompts], Tokenizer(model))
    np.testing.assert_allclose(found["vectors"], reference[0], atol=2e-6)
    np.testing.assert_allclose(said["vectors"], reference[1][:3], atol=2e-6)
    vectors = reference[1][3:].reshape(4, 2, -1).mean(1)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    similarity = reference[0] @ vectors.T
    logits = reference[2] * np.stack([similarity[:, :2].max(-1), similarity[:, 2], similarity[:, 3]], -1)
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", "class", "road", "sky", "{brace}"] and [row[0] for row in rows] == found["names"].tolist()
    np.testing.assert_allclose(np.array([row[2:] for row in rows], float), expected, atol=2e-5)
    assert [row[1] for row in rows] == [head[2 + best] for best in expected.argmax(-1)]
    out = capsys.readouterr().out
    assert f"day/0\t{rows[0][1]}\t" in out and "3 class maps" in out
    wide = np.stack([stretched(np.asarray(Image.open(photographs / f"{name}.png")), (48, 64)) for name in found["names"]])
    located = jax.jit(lambda v, x: network.module.apply(v, x, method="encode_image", dense=True)["dense"])(
        network.variables, wide.astype(np.float32) / 255
    )
    assert located.shape[1:3] == (3, 4)
    similarity = np.asarray(normalized(located)) @ vectors.T
    scores = np.stack([similarity[..., :2].max(-1), similarity[..., 2], similarity[..., 3]], -1)
    for name, image, score in zip(found["names"], [(50, 70), (96, 64), (48, 48)], scores, strict=True):
        label = np.asarray(Image.open(tmp_path / "out" / "dense" / f"{name}.png"))
        assert label.shape == image and (label == embed.class_map(score, image)).mean() > 0.999


def test_two_processes_write_what_one_does(model, photographs, tmp_path):
    """Three photographs in batches of two, so that one process fills up; both compute, the first writes."""
    options = [f"--images={photographs}", "--classes=cityscapes19", "--text=a road", "--dense"]
    assert _embed(model, tmp_path / "one", *options) == 0
    argv = ["embed", f"--model={model}", f"--output={tmp_path / 'two'}", "--batch-size=2", *options]
    texts = in_two(argv, tmp_path / "cache")
    assert "3 images -> " in texts[0] and "->" not in texts[1]
    for name in ("images", "texts"):
        ours, expected = (np.load(tmp_path / place / f"{name}.npz") for place in ("two", "one"))
        np.testing.assert_allclose(ours["vectors"], expected["vectors"], atol=2e-6)
    scores = [(tmp_path / place / "scores.csv").read_text().splitlines() for place in ("two", "one")]
    assert len(scores[0]) == 4 and [row.split(",")[:2] for row in scores[0]] == [row.split(",")[:2] for row in scores[1]]
    for number in range(3):
        maps = [np.asarray(Image.open(tmp_path / place / "dense" / "day" / f"{number}.png")) for place in ("two", "one")]
        assert (maps[0] == maps[1]).mean() > 0.999


def test_a_converted_file_and_a_label_space(model, photographs, tmp_path, capsys):
    file = tmp_path / "clip.safetensors"
    assert cli.main(["convert", f"--input={model}", f"--output={file}"]) == 0
    picture = photographs / "day" / "1.png"
    options = [f"--tokenizer={model}", f"--images={picture}", "--classes=cityscapes19"]
    assert _embed(file, tmp_path / "a", *options) == 0
    with open(tmp_path / "a" / "scores.csv", newline="") as file:
        head, row = csv.reader(file)
    assert head[2:4] == ["road", "sidewalk"] and len(head) == 21 and abs(sum(map(float, row[2:])) - 1) < 1e-4
    assert row[1] == head[2 + int(np.argmax(np.array(row[2:], float)))] and f"1\t{row[1]}\t" in capsys.readouterr().out


def test_class_maps_are_resized_before_the_argmax():
    scores = np.zeros((2, 2, 3), np.float32)
    scores[0, 0, 0], scores[0, 1, 1], scores[1, :, 2] = 1, 2, 1.5
    label = embed.class_map(scores, (8, 8))
    expected = np.stack([np.asarray(Image.fromarray(scores[..., k]).resize((8, 8), Image.Resampling.BILINEAR)) for k in range(3)], -1)
    np.testing.assert_array_equal(label, expected.argmax(-1))


def test_files_of_classes_and_prompts(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("7: car, cars\n\nbus\n")
    chosen = zero_shot.classes(str(path))
    assert chosen.names == ("car", "bus") and chosen.synonyms == (("car", "cars"), ("bus",)) and chosen.of_synonym.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(zero_shot.best_synonyms(np.array([[1.0, 3.0, 2.0]]), chosen), [[3.0, 2.0]])
    assert zero_shot.templates("") == zero_shot.TEMPLATES


@pytest.mark.parametrize(
    "options, code, message",
    [
        ([], 2, "nothing to embed"),
        (["--images=PHOTOS", "--dense"], 2, "--dense needs --images and --classes"),
        (["--text=x", "--classes=cityscapes19"], 2, "--classes scores images"),
        (["--images=PHOTOS", "--batch-size=0"], 2, "expected 1 or more"),
        (["--images=PHOTOS", "--classes=cityscape19"], 2, "cityscapes19"),
        (["--images=PHOTOS", "--classes=absent.txt"], 2, "no such file"),
        (["--images=PHOTOS", "--classes=cityscapes19", "--templates=BAD"], 2, "lines with one {} for the class"),
        (["--images=PHOTOS", "--classes=cityscapes19", "--dense", "--dense-size=50x48"], 2, "multiples of 16 pixels"),
        (["--images=absent"], 3, "no such file or folder"),
        (["--texts=absent"], 3, "no such file"),
        (["--text=x", "--tokenizer=EMPTY"], 4, "no tokenizer there"),
    ],
)
def test_mistakes_are_one_line(model, photographs, tmp_path, capsys, options, code, message):
    (tmp_path / "bad.txt").write_text("a photo\n")
    (tmp_path / "empty").mkdir()
    places = {"PHOTOS": photographs, "BAD": tmp_path / "bad.txt", "EMPTY": tmp_path / "empty"}
    for word, place in places.items():
        options = [option.replace(f"={word}", f"={place}") for option in options]
    assert _embed(model, tmp_path / "out", *options) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("segjax: ") and message in error


def test_other_networks_and_damaged_pictures_are_refused(goldens, model, photographs, tmp_path, capsys):
    assert _embed(goldens / "enet" / "ENet", tmp_path / "out", f"--images={photographs}") == 4
    assert "is a ENet, expected a CLIP" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert _embed(model, tmp_path / "out", f"--images={tmp_path / 'broken.png'}") == 3
    assert "broken.png" in capsys.readouterr().err


def test_a_tokenizer_of_another_network_is_refused(model, tmp_path, capsys):
    network = networks.load(model, settings=None)
    assert network.module.text.vocab_size == 664
    vocabulary = json.loads((model / "vocab.json").read_text())
    vocabulary |= {f"more{n}": 664 + n for n in range(3)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text((model / "merges.txt").read_text())
    assert _embed(model, tmp_path / "out", "--text=x", f"--tokenizer={tmp_path}") == 4
    assert "a tokenizer of 667 tokens" in capsys.readouterr().err
