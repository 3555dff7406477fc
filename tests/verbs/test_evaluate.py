"""`evaluate`: exact counts through any mesh and padding, label spaces mapped, files written, the known figures of a real network."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data import evaluation, label_spaces
from segjax.data.dataset import Dataset
from segjax.errors import ConfigError
from segjax.runtime import mesh as meshes
from segjax.typing import IGNORE, Method
from segjax.verbs import build, folder, inference, scores, scoring

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


class Numbered(Dataset):
    """Images whose red channel says which output the network will choose."""

    def __init__(self, count, space, size=(6, 8)):
        super().__init__()
        rng = np.random.default_rng(count)
        self.label_space = label_spaces.get(space)
        self.answers = rng.integers(0, 20, (count, *size)).astype(np.uint8)
        self.labels = rng.integers(0, self.label_space.num_classes + 1, (count, *size)).astype(np.uint8)
        self.labels[self.labels == self.label_space.num_classes] = IGNORE

    def __len__(self):
        return len(self.labels)

    def _load(self, index):
        image = np.repeat(self.answers[index][..., None], 3, -1)
        return {"image": image, "label": self.labels[index], "name": f"some/place.{index}.png"}


def stage(outputs=20, batch_size=3):
    method = Method(init=None, step=None, predict=lambda state, frozen, image: state * jax.nn.one_hot(image[..., 0], outputs))
    model = SimpleNamespace(num_classes=outputs, align_corners=False)
    return build.Stage("any", 0, {"batch_size": batch_size}, model, method)


def trial(data, **changes):
    how = inference.Inference(**{key: changes.pop(key) for key in inference.KEYS if key in changes})
    plain = scoring.Trial("numbered", "val", data, None, how, f"mIoU{data.label_space.num_classes}")
    return dataclasses.replace(plain, **changes)


def expected(data, table):
    """Counted pixel by pixel: int64 [K,K+1]."""
    classes = data.label_space.num_classes
    counts = np.zeros((classes, classes + 1), np.int64)
    for truth, answer in zip(data.labels.ravel(), data.answers.ravel(), strict=True):
        if truth != IGNORE:
            counts[truth, table[answer]] += 1
    return counts


# Torch7 outputs 0 (unlabelled), 1..19 (Cityscapes train ids) -> CamVid, as the data's protocol has it; 11 = a miss
TO_CAMVID = [11, 3, 4, 1, 1, 7, 2, 6, 6, 5, 4, 0, 9, 10, 8, 8, 8, 8, 10, 10]


@pytest.mark.parametrize(("data", "fsdp", "batch_size"), [(1, 1, 3), (4, 2, 3), (8, 1, 16)])
def test_counts_are_exact_on_any_mesh_and_padding(data, fsdp, batch_size):
    numbered = Numbered(7, "camvid11")
    mesh = meshes.make_mesh(data, fsdp)
    scorer = scoring.Scorer(stage(batch_size=batch_size), label_spaces.get("cityscapes19"), 1, mesh)
    score = scorer(jax.device_put(jnp.ones(()), meshes.replicated(mesh)), trial(numbered))
    assert (score.confusion == expected(numbered, TO_CAMVID)).all()
    hits = np.diagonal(score.confusion)
    union = score.confusion.sum(1) + score.confusion[:, :11].sum(0) - hits
    np.testing.assert_allclose(score.iou, hits / union, rtol=1e-12)
    np.testing.assert_allclose(score.miou, (hits / union).mean(), rtol=1e-12)


def test_a_prediction_is_resized_nearest_and_logits_bilinear():
    class Halves(Numbered):
        def _load(self, index):
            example = super()._load(index)
            return example | {"image": np.ascontiguousarray(example["image"][:, ::2])}

    mesh = meshes.make_mesh(1)
    numbered = Halves(2, "camvid11", size=(2, 8))
    scorer = scoring.Scorer(stage(), label_spaces.get("cityscapes19"), 1, mesh)
    score = scorer(jnp.ones(()), trial(numbered, upsample="prediction"))
    repeated = np.repeat(numbered.answers[:, :, ::2], 2, axis=2)
    same = SimpleNamespace(label_space=numbered.label_space, labels=numbered.labels, answers=repeated)
    assert (score.confusion == expected(same, TO_CAMVID)).all()
    # Between two outputs bilinear logits keep the nearer one, so only ties could differ: half-pixel weights are 3/4 and 1/4.
    assert (scorer(jnp.ones(()), trial(numbered, upsample="logits")).confusion == score.confusion).all()


class ManySizes(Numbered):
    """As `Numbered`, each image of a size of its own."""

    def __init__(self, sizes, space):
        super().__init__(len(sizes), space, size=(64, 64))
        self.sizes = sizes

    def _load(self, index):
        height, width = self.sizes[index]
        example = super()._load(index)
        return example | {key: np.ascontiguousarray(example[key][:height, :width]) for key in ("image", "label")}


@pytest.mark.parametrize("count", [3, 20])
def test_images_of_many_sizes(count, monkeypatch):
    """3 sizes are compiled for exactly, 20 are padded to few canvases: the pixels counted are each image's own either way."""
    sizes = [(9 + i, 40 - i) for i in range(count)] * 2
    data = ManySizes(sizes, "camvid11")
    want = np.zeros((11, 12), np.int64)
    for index in range(len(sizes)):
        example = data[index]
        kept = example["label"] != IGNORE
        np.add.at(want, (example["label"][kept], np.array(TO_CAMVID)[example["image"][..., 0][kept]]), 1)
    scorer = scoring.Scorer(stage(batch_size=2), label_spaces.get("cityscapes19"), 1, meshes.make_mesh(2))
    traced = []
    answer = inference.answer
    monkeypatch.setattr(inference, "answer", lambda *args, **kw: traced.append(args[2].shape) or answer(*args, **kw))
    assert (scorer(jnp.ones(()), trial(data)).confusion == want).all()
    assert len(traced) == len(set(traced)) == (3 if count == 3 else len(evaluation.groups(data))) <= 8


def columns(outputs):
    """A network whose answer is the column that a pixel has in what it is fed, as a share of the width: resizes move it smoothly."""

    def predict(state, frozen, image):
        position = (jnp.arange(image.shape[2]) + 0.5) / image.shape[2] * outputs - 0.5
        return jnp.broadcast_to(-jnp.abs(position[:, None] - jnp.arange(outputs)), (*image.shape[:3], outputs)) * state

    return build.Stage("any", 0, {"batch_size": 2}, SimpleNamespace(num_classes=outputs, align_corners=False), Method(None, None, predict))


@pytest.mark.parametrize("upsample", ["logits", "prediction"])
def test_one_size_for_the_network_and_many_for_the_labels(upsample):
    """Every canvas holds other label sizes, yet each is answered as if it had been alone."""
    sizes = [(9 + 3 * i, 50 - 4 * i) for i in range(9)]
    data, mesh, space = ManySizes(sizes, "camvid11"), meshes.make_mesh(1), label_spaces.get("camvid11")
    scorer = scoring.Scorer(columns(11), space, 0, mesh)
    found = scorer(jnp.ones(()), trial(data, size=(16, 23), upsample=upsample)).confusion
    want = np.zeros_like(found)
    for index, size in enumerate(sizes):
        alone = ManySizes([size], "camvid11")
        alone.answers, alone.labels = data.answers[index : index + 1], data.labels[index : index + 1]
        want += scorer(jnp.ones(()), trial(alone, size=(16, 23), upsample=upsample)).confusion
    assert (found == want).all() and found.sum() > 0


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (4, 2)])
def test_windows_and_views_count_as_the_whole_image_does(data, fsdp):
    """A network that sees a pixel at a time answers the same through windows and mirror images, on any mesh."""
    numbered, mesh = Numbered(5, "camvid11"), meshes.make_mesh(data, fsdp)
    scorer = scoring.Scorer(stage(batch_size=3), label_spaces.get("cityscapes19"), 1, mesh)
    state = jax.device_put(jnp.ones(()), meshes.replicated(mesh))
    changes = dict(window=(4, 3), stride=(3, 2), window_batch=2, flip=True)
    assert (scorer(state, trial(numbered, **changes)).confusion == expected(numbered, TO_CAMVID)).all()


def test_absent_classes_are_left_out_and_named():
    numbered = Numbered(2, "cityscapes19")
    numbered.labels[:], numbered.answers[:] = 0, 0
    score = scoring.Scorer(stage(19), label_spaces.get("cityscapes19"), 0, meshes.make_mesh(1))(jnp.ones(()), trial(numbered))
    assert score.iou[0] == 1 and np.isnan(score.iou[1:]).all()
    assert score.means == {"mIoU19": 1.0, "mIoU16": 1.0, "mIoU13": 1.0}
    result = scores.as_json(score, step=None, weights="x")
    assert result["iou"][1] is None and "Absent, left out of the means: sidewalk" in scores.markdown(result)
    json.dumps(result, allow_nan=False)


def test_means_are_named_by_their_classes():
    assert list(scoring.subsets(label_spaces.get("cityscapes19"))) == ["mIoU19", "mIoU16", "mIoU13"]
    assert scoring.subsets(label_spaces.get("cityscapes19"))["mIoU16"] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    assert scoring.subsets(label_spaces.get("cityscapes19"))["mIoU13"] == [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    assert list(scoring.subsets(label_spaces.get("camvid11"))) == ["mIoU11"]


def test_pictures_have_the_data_sets_names(tmp_path):
    numbered = Numbered(8, "camvid11")
    scorer = scoring.Scorer(stage(), label_spaces.get("cityscapes19"), 1, meshes.make_mesh(1))
    scorer(jnp.ones(()), trial(numbered), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 * scoring.SAMPLES
    truth = np.asarray(Image.open(tmp_path / "some_place_7.truth.png"))
    assert (truth == numbered.label_space.colorize(numbered.labels[7])).all()
    answer = np.asarray(Image.open(tmp_path / "some_place_7.prediction.png"))
    assert (answer == numbered.label_space.colorize(np.asarray(TO_CAMVID, np.uint8)[numbered.answers[7]])).all()


def test_evaluate_equals_what_training_wrote(finished, tmp_path, capsys):
    shutil.copytree(finished.workdir, tmp_path / "run")
    argv = ["evaluate", f"--config={finished.config}", f"--workdir={tmp_path / 'run'}"]
    before = json.loads((finished.workdir / "03-fda/eval/dusk-val.json").read_text())
    shutil.rmtree(tmp_path / "run/03-fda/eval")
    assert cli.main([*argv, "--dataset=dusk"]) == 0
    assert "**mIoU19**" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/03-fda/eval/dusk-val.json").read_text()) == before
    assert Image.open(tmp_path / "run/03-fda/eval/dusk-val.png").size[0] > 19 * 20
    assert not (tmp_path / "run/03-fda/eval/day-val.json").exists()
    (tmp_path / "run/03-fda/weights.safetensors").unlink()
    assert cli.main([*argv, "--dataset=dusk"]) == 0
    from_checkpoint = json.loads((tmp_path / "run/03-fda/eval/dusk-val.json").read_text())
    assert from_checkpoint["confusion"] == before["confusion"] and from_checkpoint["weights"] == "checkpoints/4"


def test_exported_weights_of_a_folder_that_trains_on_are_not_taken_for_the_newest(finished, tmp_path):
    shutil.copytree(finished.workdir / "03-fda", tmp_path / "03-fda")
    (tmp_path / "03-fda" / folder.DONE).unlink()
    assert cli.main(["evaluate", f"--config={finished.config}", f"--workdir={tmp_path}", "--dataset=dusk"]) == 0
    assert json.loads((tmp_path / "03-fda/eval/dusk-val.json").read_text())["weights"] == "checkpoints/4"


def test_weights_of_one_stage_through_another(finished, tmp_path):
    weights = finished.workdir / "02-adabn/weights.safetensors"
    argv = ["evaluate", f"--config={finished.config}", "--stage=source_only", f"--weights={weights}", f"--workdir={tmp_path}"]
    assert cli.main(argv) == 0
    found, before = (json.loads((place / "eval/dusk-val.json").read_text()) for place in (tmp_path, finished.workdir / "02-adabn"))
    assert found["confusion"] == before["confusion"]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (("--dataset=dawn",), 2, ["dawn", "day, dusk"]),
        (("--stage=adabm",), 2, ["did you mean 'adabn'"]),
        ((), 4, ["train stage fda first", "--weights=FILE"]),
        (("--weights=none.safetensors",), 4, ["none.safetensors"]),
        (("--config.stages.fda.evaluate.dusk.labelled=False",), 2, ["no key 'labelled'"]),
    ],
)
def test_mistakes(changes, code, words, finished, tmp_path, capsys):
    workdir = finished.workdir if "--dataset=dawn" in changes else tmp_path
    assert cli.main(["evaluate", f"--config={finished.config}", f"--workdir={workdir}", *changes]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error


def test_flags_replace_the_config(finished, tmp_path):
    weights = finished.workdir / "03-fda/weights.safetensors"
    argv = ["evaluate", f"--config={finished.config}", f"--workdir={tmp_path}", f"--weights={weights}"]
    flags = ["--scales=0.5,1.0", "--flip", "--window=48x32", "--stride=32x16", "--window-batch=2", "--combine=max", "--upsample=logits"]
    assert cli.main([*argv, "--dataset=dusk", *flags]) == 0
    found = json.loads((tmp_path / "eval/dusk-val.json").read_text())
    want = {"scales": [0.5, 1.0], "flip": True, "combine": "max", "window": [32, 48], "stride": [16, 32], "window_batch": 2}
    assert found["inference"] == {**want, "upsample": "logits"}
    before = json.loads((finished.workdir / "03-fda/eval/dusk-val.json").read_text())
    assert found["confusion"] != before["confusion"] and np.sum(found["confusion"]) == np.sum(before["confusion"])


def test_what_synthia_lacks_leads_no_mean():
    spec = {"make": "segjax.data.procedural:StreetScenes", "size": (32, 64), "length": 1}
    for source, headline in (
        ({"encoding": "labelId"}, "mIoU19"),
        ({"encoding": "synthia"}, "mIoU16"),
        ({"make": "segjax.data.readers.synthia:Synthia"}, "mIoU16"),
        ({"make": "segjax.data.readers.synthia:Synthia", "label_space": "synthia16"}, "mIoU16"),
        ({"label_space": "synthia13"}, "mIoU13"),
        ({"label_space": "camvid11"}, "mIoU19"),
    ):
        made = build.Stage("any", 0, {"evaluate": {"dusk": spec}, "data": {"source": source}}, None, None)
        assert scoring.trials(made)[0].headline == headline
    chosen = build.Stage("any", 0, {"evaluate": {"dusk": {**spec, "score": "mIoU13"}}, "data": {}}, None, None)
    assert scoring.trials(chosen)[0].headline == "mIoU13"


def test_a_network_of_16_outputs_on_19_classes():
    """Its outputs find their rows by name; the 13-class mean is over rows of the same matrix."""
    numbered = Numbered(6, "cityscapes19")
    numbered.answers %= 16
    score = scoring.Scorer(stage(16), label_spaces.get("synthia16"), 0, meshes.make_mesh(1))(jnp.ones(()), trial(numbered))
    rows = [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    assert (score.confusion == expected(numbered, rows)).all()
    hits = np.diagonal(score.confusion)
    iou = hits / (score.confusion.sum(1) + score.confusion[:, :19].sum(0) - hits)
    np.testing.assert_allclose(score.means["mIoU16"], iou[rows].mean(), rtol=1e-12)
    np.testing.assert_allclose(score.means["mIoU13"], iou[[r for r in rows if r not in (3, 4, 5)]].mean(), rtol=1e-12)
    assert (iou[[9, 14, 16]] == 0).all() and score.means["mIoU19"] < score.means["mIoU16"]


def test_wrong_scoring_keys():
    spec = {"make": "segjax.data.procedural:StreetScenes", "size": (32, 64), "length": 1}
    wrong = (("upsample", "nearest"), ("score", "mIoU11"), ("size", (0, 64)), ("combine", "mean"), ("scales", (0.5, 0)))
    for key, value in (*wrong, ("window", 512), ("window_batch", 0), ("stride", (8, 8))):
        broken = build.Stage("any", 0, {"evaluate": {"dusk": {**spec, key: value}}}, None, None)
        with pytest.raises(ConfigError, match=f"evaluate.dusk.{key}"):
            scoring.trials(broken)


def test_the_torch7_enet_on_camvid(real_data, tmp_path):
    """Every tenth photograph of val and dusk as OpenCV 4.11's importer labels it: image bilinear to 1024x512, prediction nearest back.

    In a process of its own: optimised code takes half the time. Over all of them OpenCV's means are .4601 and .2097.
    """
    pytest.importorskip("torchfile")
    weights, camvid = tmp_path / "enet.safetensors", tmp_path / "camvid"
    source = real_data / "weights/enet_cityscapes_torch7/enet-model.net"
    assert cli.main(["convert", f"--input={source}", f"--output={weights}", "--label-space=cityscapes19"]) == 0
    camvid.mkdir()
    for part, chosen in (("train", "0001TP"), ("val", "0016E5")):
        pairs = [line for line in (real_data / f"camvid/{part}.txt").read_text().splitlines() if chosen in line]
        (camvid / f"{part}.txt").write_text("\n".join(pairs[::10]))
        for place in (part, f"{part}annot"):
            (camvid / place).symlink_to(real_data / "camvid" / place)
    argv = ["evaluate", f"--config={CONFIGS / 'camvid_day_dusk.py'}", f"--config.data={camvid}", f"--weights={weights}"]
    command = [sys.executable, "-m", "segjax", *argv, "--config.evaluate_size=(512,1024)", f"--workdir={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[1])}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = {name: json.loads((tmp_path / f"eval/{name}.json").read_text())["miou"] for name in ("day-val", "dusk-train")}
    assert abs(found["day-val"] - 0.4637) < 0.005
    assert abs(found["dusk-train"] - 0.2239) < 0.005
