import pickle
import time

import numpy as np
import pytest

from segjax.data.procedural import StreetScenes
from segjax.data.scene_canvas import Canvas
from segjax.data.scene_look import LOOKS, draw_light
from segjax.errors import ConfigError

SIZE = (64, 128)


@pytest.fixture(scope="module")
def day():
    dataset = StreetScenes(size=SIZE)
    return [dataset[i] for i in range(60)]


@pytest.fixture(scope="module")
def dusk():
    dataset = StreetScenes(size=SIZE, look="dusk")
    return [dataset[i] for i in range(60)]


def test_shapes_and_ids(day):
    for example in day:
        assert example["image"].shape == (*SIZE, 3) and example["image"].dtype == np.uint8
        assert example["label"].shape == SIZE and example["label"].dtype == np.uint8
        assert set(np.unique(example["label"])) <= {*range(19), 255}
    assert StreetScenes(size=(70, 110))[0]["image"].shape == (70, 110, 3)


def test_all_classes_occur_and_the_street_dominates(day, dusk):
    for scenes in (day, dusk):
        counts = np.bincount(np.concatenate([s["label"].ravel() for s in scenes]), minlength=256)
        assert (counts[:19] > 0).all()
        share = counts / counts.sum()
        assert 0.25 < share[0] < 0.5 and share[2] > 0.12 and share[8] > 0.04 and share[10] > 0.03 and share[13] > 0.01
        assert share[255] < 0.01


def test_layout_statistics_agree_and_appearance_does_not(day, dusk):
    shares = [np.bincount(np.concatenate([s["label"].ravel() for s in scenes]), minlength=256)[:19] / 60 for scenes in (day, dusk)]
    assert np.abs(shares[0] - shares[1]).sum() / shares[0].sum() < 0.2
    bright, dark = (np.mean([s["image"].reshape(-1, 3).mean(0) for s in scenes], 0) for scenes in (day, dusk))
    spread = np.std([s["image"].mean() for s in day])
    assert bright.mean() - dark.mean() > 2.5 * spread
    assert dark[2] - dark[1] > 15 and abs(bright[2] - bright[1]) < 15


def test_scenes_depend_on_their_index_alone(day):
    again = StreetScenes(size=SIZE, length=100, cache=True)
    for index in (17, 3, 17):
        example = again[index]
        assert (example["image"] == day[index]["image"]).all() and (example["label"] == day[index]["label"]).all()
    thawed = pickle.loads(pickle.dumps(again))
    assert (thawed[3]["image"] == day[3]["image"]).all() and repr(thawed) == repr(again)


def test_looks_splits_and_seeds_share_no_scene(day):
    for changes in ({"look": "dusk"}, {"split": "val"}, {"seed": 1}):
        other = StreetScenes(size=SIZE, **changes)[0]
        assert (other["label"] != day[0]["label"]).mean() > 0.02
    assert (day[0]["label"] != day[1]["label"]).mean() > 0.02


def test_unlabelled_and_length():
    dataset = StreetScenes(size=SIZE, length=3).unlabelled()
    assert "label" not in dataset[0] and len(dataset) == 3 and not dataset.labelled
    assert len(StreetScenes(split="val")) == 128
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.parametrize("knobs, match", [({"look": "noon"}, "noon"), ({"split": "test"}, "test"), ({"size": (8, 8)}, "too small")])
def test_wrong_knobs(knobs, match):
    with pytest.raises(ConfigError, match=match):
        StreetScenes(**knobs)


def test_colour_and_label_are_one_stroke():
    light, _ = draw_light(LOOKS["day"], np.random.default_rng(0))
    canvas = Canvas((32, 64), np.random.default_rng(0), light)
    canvas.front(-1, 1, 0, 2, 10.0, (200, 0, 0), "bus")
    colour, label = canvas.finish()
    assert (label == 15).any() and (colour[label == 15][:, 0] > 90).all() and (colour[label == 0] < 110).all()
    column, row = canvas.project(0.0, canvas.camera, 1000.0)
    assert abs(row - canvas.horizon) < 1e-6


def test_a_scene_is_quick():
    dataset = StreetScenes(size=(128, 256))
    dataset[0]
    start = time.process_time()
    for index in range(10):
        dataset[index]
    # 10-15 ms on one core; the bound leaves room for a machine that is busy, and still catches a slow path.
    assert (time.process_time() - start) / 10 < 0.08
