"""`refine`: a folder of labels through a tiny MobileSAM, read back as a data set, gone on with after a stop, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data import folders, pseudo

TOLD = ("--set=decoder_heads=4", "--set=image_size=128", "--min-area=300", "--places=6")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three pictures with blocks for labels; in the last nothing is large."""
    place = tmp_path_factory.mktemp("refine")
    rng = np.random.default_rng(0)
    for name in "abc":
        blocks = rng.integers(0, 19, (2, 3))
        label = np.kron(blocks, np.ones((32, 32))).astype(np.uint8)
        label[rng.random(label.shape) < 0.02] = 255
        if name == "c":
            label[::2], label[:, ::2] = 255, 255
        image = np.kron(rng.integers(0, 255, (2, 3, 3)), np.ones((32, 32, 1))) * 0.8 + rng.integers(0, 50, (64, 96, 3))
        for kind, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
            (place / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(place / kind / f"{name}.png")
    return place


def run(goldens, photographs, out, *flags, model="mobile_sam/mobile_sam.pt"):
    arguments = [f"--model={goldens / model}", f"--images={photographs / 'images'}", f"--labels={photographs / 'labels'}"]
    return cli.main(["refine", *arguments, f"--output={out}", *TOLD, *flags])


def test_from_labels_to_refined_labels_and_on_after_a_stop(goldens, photographs, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(goldens, photographs, out, "--seed=3") == 0
    printed = capsys.readouterr().out
    assert "3 labels in" in printed and "1 of 3 images unchanged" in printed
    read = lambda folder: np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in "abc"])
    label, got = read(photographs / "labels"), read(out / "labels")
    assert (got[2] == label[2]).all() and all((got[n] != label[n]).any() for n in (0, 1))
    assert all(set(np.unique(got[n])) <= {*np.unique(label[n]), 255} for n in (0, 1))
    summary = json.loads((out / "pseudo.json").read_text())
    assert np.isclose(sum(summary["before"]), (label < 19).mean()) and np.isclose(sum(summary["after"]), (got < 19).mean())
    moved = sum(summary["before"]) + summary["gained"] - summary["dropped"]
    assert np.isclose(moved, sum(summary["after"]))
    assert Image.open(out / "before_after.png").size[0] == 960

    # read as a data set, finished, gone on with, refused
    again = pseudo.PseudoLabelled(folders.FolderDataset(photographs / "images"), out)
    np.testing.assert_array_equal(again[1]["label"], got[1])
    assert run(goldens, photographs, out, "--seed=3") == 0 and "nothing to do" in capsys.readouterr().out
    before = (out / "labels.sha256").read_bytes()
    (out / "pseudo.json").unlink()
    (out / "labels" / "b.png").unlink()
    assert run(goldens, photographs, out, "--seed=3") == 0
    assert (out / "labels.sha256").read_bytes() == before
    assert run(goldens, photographs, out, "--seed=4") == 2
    assert re.search("was made with other settings .seed 3 -> 4.: choose another --output", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--points=0"], 2, "--points=0: expected 1 or more"),
        (["--min-area=-1"], 2, "--min-area=-1: expected 0 or more"),
        (["--label-space=camvid11"], 3, "id"),
        (["--model", "resnet"], 4, "is a ResNet, which takes no prompts"),
    ],
)
def test_mistakes_are_one_line(goldens, photographs, tmp_path, capsys, flags, code, message):
    model = "resnet_torchvision/resnet50-tiny.pth" if "resnet" in flags else "mobile_sam/mobile_sam.pt"
    told = [] if "resnet" in flags else flags
    arguments = [f"--images={photographs / 'images'}", f"--labels={photographs / 'labels'}", f"--output={tmp_path / 'out'}"]
    assert cli.main(["refine", f"--model={goldens / model}", *arguments, *(TOLD if told else ()), *told]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error


def test_a_folder_of_something_else_is_left_alone(goldens, photographs, tmp_path, capsys):
    (tmp_path / "labels").mkdir()
    assert run(goldens, photographs, tmp_path) == 2
    assert "was not made by `segjax refine`" in capsys.readouterr().err
