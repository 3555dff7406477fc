"""`evaluate` and `predict` against cityscapesScripts' pixel-level evaluation of the same PNGs: equal to the last digit."""

import functools
import json
import math
import operator
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data import label_spaces
from segjax.verbs import variables

SPACE = label_spaces.get("cityscapes19")
LABEL_IDS = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33], np.uint8)
NET = """
    import flax.linen as nn
    import jax
    import jax.numpy as jnp


    class Echo(nn.Module):
        num_classes: int
        align_corners: bool = False

        @nn.compact
        def __call__(self, image, train=False):
            scale = self.param("classifier", nn.initializers.ones, (self.num_classes,))
            answer = jnp.round(image[..., 0] * 255).astype(int)
            return {"logits": jax.nn.one_hot(answer, self.num_classes) * scale}
"""
CONFIG = """
    from ml_collections import ConfigDict

    FOLDERS = "segjax.data.folders:FolderDataset"


    def get_config(arg):
        root, encoding = arg.split(",")
        files = {"make": FOLDERS, "images": root + "/leftImg8bit/val", "labels": root + "/gtFine/val", "encoding": "labelId"}
        stage = {
            "method": {"make": "segjax.methods.source_only:make"},
            "model": {"make": "official_echo_net:Echo", "num_classes": 19},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "steps": 1,
            "batch_size": 2,
            "mesh": {"data": 1},
            "data": {"source": {"make": FOLDERS, "images": "x", "labels": "x", "encoding": encoding}, "crop": (8, 8)},
            "evaluate": {"cityscapes": files},
        }
        return ConfigDict({"seed": 0, "order": ("only",), "stages": {"only": stage}})
"""


class Cityscapes:
    """A data set in Cityscapes' own layout, its truth and what the network will answer drawn at random, some classes nowhere."""

    def __init__(self, root, *, seed, answers):
        rng = np.random.default_rng(seed)
        self.root, self.frames = root, [f"{city}_{n:06d}_{n + 7:06d}" for n, city in enumerate(("aachen", "aachen", "ulm", "bonn", "ulm"))]
        truth = rng.permutation([i for i in range(34) if i != 31])  # no train anywhere in the truth
        for frame in self.frames:
            size = (21, 34)
            answer = rng.choice(answers, size).astype(np.uint8)
            label = np.where(rng.random(size) < 0.3, LABEL_IDS[answer], rng.choice(truth, size)).astype(np.uint8)
            label = np.where(label == 31, 0, label).astype(np.uint8)
            city = frame.split("_")[0]
            self._save(f"leftImg8bit/val/{city}/{frame}_leftImg8bit.png", np.stack([answer, label, label], -1))
            self._save(f"gtFine/val/{city}/{frame}_gtFine_labelIds.png", label)

    def _save(self, name, array):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(self.root / name)

    def truth(self):
        return sorted(self.root.glob("gtFine/val/*/*_gtFine_labelIds.png"))


@pytest.fixture(scope="module")
def official():
    return pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A network that answers an image's red value, and a config that scores it on any folder."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "official_echo_net.py").write_text(textwrap.dedent(NET))
    (folder / "echo.py").write_text(textwrap.dedent(CONFIG))
    sys.path.insert(0, str(folder))
    weights = {"params": {"classifier": jnp.ones(19)}, "batch_stats": {}}
    variables.export(folder / "echo.safetensors", weights, space="cityscapes19", metadata={})
    return folder


def official_scores(official, data, predictions):
    """What the original's main() computes, for the PNGs that its own rule finds."""
    official.args.evalInstLevelScore, official.args.JSONOutput, official.args.quiet = False, False, True
    official.args.predictionPath, official.args.predictionWalk = str(predictions), None
    truth = [str(path) for path in data.truth()]
    found = [official.getPrediction(official.args, path) for path in truth]
    return official.evaluateImgLists(found, truth, official.args)


def segjax_scores(fork, data, workdir, *flags, encoding="labelId"):
    argv = [f"--config={fork / 'echo.py'}:{data.root},{encoding}", f"--workdir={workdir}", *flags]
    assert cli.main(["evaluate", *argv]) == 0
    return json.loads((workdir / "eval/cityscapes-val.json").read_text())


def compare(ours, theirs):
    scores = [theirs["classScores"][name] for name in SPACE.classes]
    assert ours["iou"] == [None if math.isnan(score) else score for score in scores]
    assert ours["means"]["mIoU19"] == theirs["averageScoreClasses"]
    matrix = np.array(theirs["confMatrix"])
    assert ours["confusion"] == matrix[np.ix_(LABEL_IDS, LABEL_IDS)].tolist()
    assert np.add(ours["misses"], np.sum(ours["confusion"], 1)).tolist() == matrix[LABEL_IDS].sum(1).tolist()
    return dict(zip(SPACE.classes, scores, strict=True))


def test_a_network_is_scored_as_its_label_pngs_are(official, fork, tmp_path, capsys):
    data = Cityscapes(tmp_path / "data", seed=0, answers=[i for i in range(19) if i not in (9, 16)])
    weights = f"--weights={fork / 'echo.safetensors'}"
    ours = segjax_scores(fork, data, tmp_path / "a", weights)
    argv = ["predict", f"--config={fork / 'echo.py'}:{data.root},labelId", f"--workdir={tmp_path}", weights, "--ids=labelId"]
    assert cli.main([*argv, f"--input={data.root / 'leftImg8bit/val'}", f"--output={tmp_path / 'png'}"]) == 0
    assert (tmp_path / "png/ulm/ulm_000002_000009_pred_labelIds.png").exists()
    scores = compare(ours, official_scores(official, data, tmp_path / "png"))
    assert math.isnan(scores["train"]) and scores["terrain"] == 0  # nowhere; there, and never answered
    again = segjax_scores(fork, data, tmp_path / "b", f"--predictions={tmp_path / 'png'}", "--ids=labelId")
    assert {key: again[key] for key in ("iou", "means", "confusion", "misses")} == {
        k: ours[k] for k in ("iou", "means", "confusion", "misses")
    }
    assert "Never answered" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [1, 2])
def test_random_label_pngs_ignored_ids_included(official, fork, tmp_path, seed):
    """Answers of every id, unlabelled too, on truths of every id: an ignored truth counts nothing, an ignored answer is a miss."""
    data = Cityscapes(tmp_path / "data", seed=seed, answers=range(19))
    rng = np.random.default_rng(seed)
    (tmp_path / "png").mkdir()
    for frame in data.frames:
        answer = rng.integers(0, 34, (21, 34)).astype(np.uint8)
        Image.fromarray(answer).save(tmp_path / f"png/{frame}_anything.png")
    theirs = official_scores(official, data, tmp_path / "png")
    ours = segjax_scores(fork, data, tmp_path, f"--predictions={tmp_path / 'png'}", "--ids=labelId")
    compare(ours, theirs)
    assert sum(ours["misses"]) > 0
    # The number plate (-1, here 255) is ignored in the truth and a miss in an answer, as "unlabelled" is; the original refuses the file.
    for path in [*data.truth(), *(tmp_path / "png").iterdir()]:
        array = np.array(Image.open(path))
        Image.fromarray(np.where(array == 0, 255, array).astype(np.uint8)).save(path)
    plates = segjax_scores(fork, data, tmp_path, f"--predictions={tmp_path / 'png'}", "--ids=labelId")
    assert plates["confusion"] == ours["confusion"] and plates["misses"] == ours["misses"]


def test_a_network_from_synthia_is_reported_by_16_and_13(official, fork, tmp_path):
    """19 outputs that never answer terrain, truck or train: the hand's means over the official class scores."""
    answers = [i for i in range(19) if SPACE.classes[i] not in ("terrain", "truck", "train")]
    data = Cityscapes(tmp_path / "data", seed=3, answers=answers)
    ours = segjax_scores(fork, data, tmp_path, f"--weights={fork / 'echo.safetensors'}", encoding="synthia")
    (tmp_path / "png").mkdir()
    for frame in data.frames:
        image = np.array(Image.open(next(data.root.rglob(f"{frame}_leftImg8bit.png"))))
        Image.fromarray(LABEL_IDS[image[..., 0]]).save(tmp_path / f"png/{frame}.png")
    scores = compare(ours, official_scores(official, data, tmp_path / "png"))
    sixteen = [score for name, score in scores.items() if name not in ("terrain", "truck", "train")]
    thirteen = [score for name, score in scores.items() if name not in ("terrain", "truck", "train", "wall", "fence", "pole")]
    assert len(sixteen) == 16 and len(thirteen) == 13
    total = lambda scores: functools.reduce(operator.add, scores)  # sum() compensates its rounding since Python 3.12
    assert ours["means"]["mIoU16"] == total(sixteen) / 16 and ours["means"]["mIoU13"] == total(thirteen) / 13
    assert ours["headline"] == "mIoU16" and ours["miou"] == ours["means"]["mIoU16"]
    assert ours["means"]["mIoU19"] == total(sixteen) / 18  # the classic mistake: two classes of 0 divide along, train is nowhere


def test_mistakes(fork, tmp_path, capsys):
    data = Cityscapes(tmp_path / "data", seed=4, answers=range(19))
    png, config = tmp_path / "png", f"--config={fork / 'echo.py'}:{data.root},labelId"

    def error(code, *flags):
        assert cli.main(["evaluate", config, f"--workdir={tmp_path}", f"--predictions={png}", *flags]) == code
        return capsys.readouterr().err

    assert "no such folder" in error(3)
    png.mkdir()
    for frame in data.frames[1:]:
        Image.new("L", (34, 21)).save(png / f"{frame}_x.png")
    assert "has no aachen_000000_000007*.png" in error(3)
    Image.new("L", (34, 22)).save(png / f"{data.frames[0]}.png")
    assert "is 34x22 but the label" in error(3)
    Image.new("L", (34, 21)).save(png / f"{data.frames[0]}_twice.png")
    assert "are both predictions for" in error(3)
    assert "--flip would do nothing" in error(2, "--flip")
