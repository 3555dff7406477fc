import numpy as np
import pytest

from segjax.data.crops import CropRule, Quality, random_crop, rules
from segjax.data.sampling import Wanted
from segjax.errors import ConfigError, DataError


def coded(height=24, width=40):
    """An image whose red is the row and green the column, and a label that repeats the column: alignment can be read off."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return {"image": np.stack([4 * y, 4 * x, 0 * y], -1), "label": x, "name": "day/0001.png"}


def crops(count=40, **keywords):
    rng = np.random.default_rng(0)
    return [random_crop(rng, coded(), CropRule((16, 24), **keywords)) for _ in range(count)]


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


def test_on_the_diagonal_as_detectron2():
    places = {(int(piece["image"][0, 0, 0]) // 4, int(piece["label"][0, 0])) for piece in crops(200, flip=False, diagonal=True)}
    assert len({y for y, _ in places}) == 9 and all(abs((y + 0.5) / 9 - (x + 0.5) / 17) < 0.1 for y, x in places)
    small = random_crop(np.random.default_rng(0), coded(), CropRule((32, 64), flip=False, diagonal=True))
    assert (
        (small["label"][:24, :40] == coded()["label"]).all() and (small["label"][24:] == 255).all() and (small["image"][:, 40:] == 0).all()
    )


def test_knobs_do_not_shift_the_stream():
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    random_crop(a, coded(), CropRule((8, 8), flip=False))
    random_crop(b, coded(), CropRule((16, 16), scale=(0.5, 2.0), independent=True, resize=(30, 30), small="fill"))
    assert a.random() == b.random()


def test_crop_larger_than_the_image():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="crop 64x16 is larger than 40x24 in day/0001.png: lower data.crop or set data.resize"):
        random_crop(rng, coded(), CropRule((16, 64), scale=(2.0, 4.0)))
    with pytest.raises(DataError, match="crop 24x16 is larger than 20x12 in day/0001.png: lower data.crop or raise data.resize"):
        random_crop(rng, coded(), CropRule((16, 24), resize=(12, 20)))


def test_resize_then_crop_is_one_cut_of_the_resized_image():
    for seed in range(20):
        piece = random_crop(np.random.default_rng(seed), coded(), CropRule((20, 32), resize=(48, 80), flip=False))
        rows, columns = piece["image"][..., 0] / 4, piece["image"][..., 1] / 4
        step = (columns[0, -3] - columns[0, 2]) / 27
        assert abs(step - 0.5) < 0.02  # a pixel of the crop is half a pixel of the original
        assert np.abs(columns - piece["label"]).max() <= 0.5 and np.ptp(rows[:, 0]) < 10
    whole = random_crop(np.random.default_rng(0), coded(), CropRule((12, 20), resize=(12, 20), flip=False))
    assert (whole["label"] == np.repeat([np.arange(1, 40, 2)], 12, 0)).all()


def test_the_cut_equals_a_cut_of_pil_s_resize():
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    for seed, size in enumerate([(61, 90), (25, 41), (37, 60), (30, 53)]):
        rng = np.random.default_rng(seed)
        piece = random_crop(rng, {"image": image, "label": image[..., 0]}, CropRule((20, 30), resize=size, flip=False))
        large = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        label = np.asarray(Image.fromarray(image[..., 0]).resize(size[::-1], Image.Resampling.NEAREST))
        places = [(y, x) for y in range(size[0] - 19) for x in range(size[1] - 29)]
        gaps = [np.abs(large[y : y + 20, x : x + 30] - piece["image"]).max() for y, x in places]
        y, x = places[int(np.argmin(gaps))]
        assert min(gaps) <= 1 and (label[y : y + 20, x : x + 30] == piece["label"]).all()


def test_independent_scales_change_the_aspect_and_fill_stretches():
    def steps(rule):
        found = []
        for seed in range(60):
            image = random_crop(np.random.default_rng(seed), coded(), rule)["image"].astype(float) / 4
            found.append((np.ptp(image[:, 12, 0]) / 15, np.ptp(image[8, :, 1]) / 23))
        return np.array(found)

    together = steps(CropRule((16, 24), scale=(1.0, 2.0), flip=False))
    apart = steps(CropRule((16, 24), scale=(1.0, 2.0), flip=False, independent=True))
    assert np.abs(together[:, 0] / together[:, 1] - 1).max() < 0.1 and np.ptp(apart[:, 0] / apart[:, 1]) > 0.5
    stretched = random_crop(np.random.default_rng(0), coded(), CropRule((16, 24), scale=(0.5, 0.5), small="fill", flip=False))
    assert (stretched["label"] < 40).all() and stretched["label"][0, 0] == 0 and stretched["label"][0, -1] >= 38


def striped(width_of_rare=3):
    """Class 0 everywhere but for a few columns of class 1 at the left and 255 at the right."""
    example = coded(16, 64)
    example["label"] = np.zeros((16, 64), np.uint8)
    example["label"][:, :width_of_rare] = 1
    example["label"][:, -20:] = 255
    return example


def test_quality_is_dafomer_s_and_diga_s_rule():
    half = np.repeat([[0, 0, 0, 1, 255, 255]], 4, 0).astype(np.uint8)
    assert not Quality(max_share=0.75).accepts(half) and Quality(max_share=0.76).accepts(half)
    assert not Quality().accepts(np.where(half == 1, 255, half).astype(np.uint8))
    label = np.zeros((10, 100), np.uint8)
    label[0, :20] = 1
    assert not Quality(min_share=0.02).accepts(label)
    label[0, 20] = 1
    assert Quality(min_share=0.02).accepts(label)


@pytest.mark.parametrize("quality", [Quality(redraws=40), {"min_share": 0.05, "redraws": 40}])
def test_crops_are_redrawn_until_they_will_do(quality):
    (plain,), (picky,) = rules({"crop": (8, 8)}, (), "data"), rules({"crop": (8, 8), "quality": quality}, (), "data")
    counts = []
    for rule in (plain, picky):
        crops = [random_crop(np.random.default_rng(seed), striped(), rule)["label"] for seed in range(60)]
        counts.append(sum((crop == 1).any() for crop in crops))
    assert counts[0] < 12 and counts[1] > 45


def test_crops_are_redrawn_for_a_wanted_class():
    def share(wanted):
        pieces = [random_crop(np.random.default_rng(seed), striped(), CropRule((8, 8)), wanted)["label"] for seed in range(60)]
        return np.mean([(piece == 1).sum() > 8 for piece in pieces])

    assert share(None) < 0.2 and share(Wanted(1, 8, 0)) == share(None) and 0.7 < share(Wanted(1, 8, 60))
    image = random_crop(np.random.default_rng(5), striped(), CropRule((8, 8)), Wanted(1, 8, 20))
    assert (image["image"][..., 1] // 4 < 3)[image["label"] == 1].all()


def test_rules_of_a_role():
    common = {"crop": (8, 8), "scale": (0.5, 1.0)}
    low, high = rules(common, ({"resize": (16, 16)}, {"resize": (32, 32), "share": 3}), "data.source_crops")
    assert (low.resize, low.scale, high.resize, high.share) == ((16, 16), (0.5, 1.0), (32, 32), 3)
    assert rules(common, {"crop": (4, 4)}, "data")[0].crop == (4, 4)
    for parts, words in [
        (({"crop": (8, 8)}, {"crop": (9, 9)}), "one crop size"),
        ({"crops": 3}, "no 'crops'"),
        ({"crop": (8,)}, "two positive numbers"),
        ({"scale": (2, 1)}, "not a range"),
        ({"small": "zoom"}, "'pad' or 'fill'"),
        ({"quality": {"share": 1}}, "no 'share'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            rules(common, parts, "data.source_crops")
