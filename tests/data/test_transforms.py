import numpy as np
import pytest

from segjax.data.transforms import random_crop, resize_image, resize_label
from segjax.errors import DataError


def coded(height=24, width=40):
    """An image whose red is the row and green the column, and a label that repeats the column: alignment can be read off."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return {"image": np.stack([4 * y, 4 * x, 0 * y], -1), "label": x, "name": "day/0001.png"}


def crops(count=40, **keywords):
    rng = np.random.default_rng(0)
    return [random_crop(rng, coded(), (16, 24), **keywords) for _ in range(count)]


def test_crop_is_cut_from_the_image_and_covers_it():
    starts = set()
    for piece in crops(200, flip=False):
        image, label = piece["image"], piece["label"]
        assert image.shape == (16, 24, 3) and label.shape == (16, 24)
        y, x = image[0, 0, 0] // 4, label[0, 0]
        assert (image == coded()["image"][y : y + 16, x : x + 24]).all() and (label == coded()["label"][y : y + 16, x : x + 24]).all()
        starts.add((y, x))
    assert {s[0] for s in starts} == set(range(9)) and {s[1] for s in starts} == set(range(17))


def test_flip_mirrors_image_and_label_half_of_the_time():
    mirrored = [piece["label"][0, 0] > piece["label"][0, -1] for piece in crops(200)]
    assert 70 < sum(mirrored) < 130
    for piece in crops():
        assert (piece["image"][..., 1] == 4 * piece["label"]).all()
    assert not any(piece["label"][0, 0] > piece["label"][0, -1] for piece in crops(flip=False))


def test_scaling_keeps_image_and_label_aligned():
    steps = []
    for piece in crops(scale=(1.0, 2.0), flip=False):
        gap = piece["image"][..., 1].astype(float) / 4 - piece["label"]
        assert np.abs(gap).max() <= 0.76 and piece["label"].max() < 40
        steps.append((piece["image"][0, -1, 1] - float(piece["image"][0, 0, 1])) / 4 / 23)
    assert min(steps) < 0.65 and max(steps) > 0.85


def test_small_scale_pads_with_ignore():
    padded = 0
    for piece in crops(scale=(0.4, 0.6)):
        hole = piece["label"] == 255
        padded += hole.any()
        assert (piece["image"][hole] == 0).all() and 0.1 < hole.mean() < 0.85
        assert piece["label"][~hole].max() < 40
    assert padded == 40


def test_knobs_do_not_shift_the_stream():
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    random_crop(a, coded(), (8, 8), flip=False)
    random_crop(b, coded(), (16, 16), scale=(0.5, 2.0))
    assert a.random() == b.random()


def test_crop_larger_than_the_image():
    with pytest.raises(DataError, match="crop 64x16 is larger than 40x24 in day/0001.png: lower data.crop or set data.resize"):
        random_crop(np.random.default_rng(0), coded(), (16, 64), scale=(2.0, 4.0))


def test_resize():
    example = coded()
    image = resize_image(example["image"], (48, 80))
    # Half-pixel centres: output column 2j+1 lies a quarter of a pixel right of input column j.
    assert image.shape == (48, 80, 3) and image[10, 21, 1] == 41 and image[10, 22, 1] == 43
    label = resize_label(example["label"], (12, 80))
    assert (label == np.repeat(np.arange(40), 2)).all()
