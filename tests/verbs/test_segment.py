"""`segment`: from an image that is not square to masks of its own size, by points, boxes and everything; and what it refuses."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.errors import ConfigError
from segjax.verbs import everything, segment_prompts

TOLD = ("--set=decoder_heads=4",)


@pytest.fixture(scope="module")
def photograph(goldens, tmp_path_factory):
    """The golden's picture as a file: 121 wide, 90 high."""
    path = tmp_path_factory.mktemp("photograph") / "street.png"
    Image.fromarray(np.load(goldens / "sam_original/golden.npz")["in_photo_uint8"]).save(path)
    return path


def run(goldens, photograph, out, *flags, model="sam_original/sam_vit_tiny.pth"):
    return cli.main(["segment", f"--model={goldens / model}", f"--input={photograph}", f"--output={out}", *TOLD, *flags])


def masks_of(out, name="street"):
    about = json.loads((out / f"{name}.json").read_text())
    return [np.asarray(Image.open(out / row["file"])) for row in about["masks"]], about


def test_the_masks_are_the_originals(goldens, photograph, tmp_path, capsys):
    """The golden's points and box as typed on the command line; every pixel that is not a tie of float32 is the original's."""
    raw = np.load(goldens / "sam_original/golden.npz")
    points = ";".join(f"{x},{y},{label}" for (x, y), label in zip(raw["in_photo_points_xy"], raw["in_photo_point_labels"], strict=True))
    box = ",".join(str(x) for x in raw["in_photo_box"])
    assert run(goldens, photograph, tmp_path, f"--points={points}", f"--box={box}", "--multimask=all") == 0
    masks, about = masks_of(tmp_path)
    want = raw["out_photo_mask_logits_fullres"]
    assert want.shape == (3, 90, 121) and len(masks) == 3
    for n, mask in enumerate(masks):
        assert mask.shape == (90, 121) and set(np.unique(mask)) <= {0, 255}
        clear = np.abs(want[n]) > 2e-5
        assert clear.mean() > 0.99 and ((mask > 0) == (want[n] > 0))[clear].all()
        row = about["masks"][n]
        y, x = np.nonzero(mask)
        assert row["area"] == len(x) and row["box"] == [x.min(), y.min(), x.max(), y.max()]
        assert abs(row["predicted_iou"] - raw["out_photo_iou"][n]) < 2e-5
        assert row["prompt"] == f"points {points}, box {box}"
    assert (about["width"], about["height"]) == (121, 90)
    assert Image.open(tmp_path / "street_overlay.jpg").size == (121, 90)
    assert "1 images in" in capsys.readouterr().out


def test_several_objects_on_several_images(goldens, photograph, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    image = Image.open(photograph)
    image.save(folder / "wide.png")
    image.transpose(Image.Transpose.TRANSPOSE).save(folder / "tall.png")
    assert run(goldens, folder, tmp_path / "out", "--points=10,20;60.5,70,0", "--points=50,60") == 0
    for name, shape in (("wide", (90, 121)), ("tall", (121, 90))):
        masks, about = masks_of(tmp_path / "out", name)
        assert [mask.shape for mask in masks] == [shape] * 2
        assert [row["prompt"] for row in about["masks"]] == ["points 10,20;60.5,70,0", "points 50,60"]


def test_everything(goldens, photograph, tmp_path):
    """Random weights predict no quality worth the name: the thresholds are lowered until some masks pass them."""
    flags = ("--everything", "--points-per-side=4", "--pred-iou=-9", "--stability=0.0", "--stability-offset=0.01", "--box-nms=0.6")
    assert run(goldens, photograph, tmp_path / "all", *flags) == 0
    masks, about = masks_of(tmp_path / "all")
    rows = about["masks"]
    assert 1 <= len(masks) < 48 and all(mask.shape == (90, 121) and mask.any() for mask in masks)
    assert [row["predicted_iou"] for row in rows] == sorted((row["predicted_iou"] for row in rows), reverse=True)
    assert all(0 <= row["point"][0] < 121 and 0 <= row["point"][1] < 90 for row in rows)
    for n, row in enumerate(rows):
        for other in rows[:n]:
            assert overlap(row["box"], other["box"]) <= 0.6
    more = (*flags, "--crop-layers=1", "--min-region-area=30")
    assert run(goldens, photograph, tmp_path / "crops", *more) == 0
    masks, _ = masks_of(tmp_path / "crops")
    for mask in masks:
        again, changed = everything.without_small_regions(mask > 0, 30)
        assert not changed and (again == (mask > 0)).all()


def overlap(a, b):
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return wide / max(area(a) + area(b) - wide, 1)


def test_crops_cover_the_image_as_the_originals_do():
    assert everything.crop_boxes((90, 121), 0, 512 / 1500) == [(0, 0, 121, 90)]
    boxes = everything.crop_boxes((600, 1000), 1, 512 / 1500)
    assert boxes == [(0, 0, 1000, 600), (0, 0, 602, 402), (0, 198, 602, 600), (398, 0, 1000, 402), (398, 198, 1000, 600)]
    assert len(everything.crop_boxes((600, 1000), 2, 512 / 1500)) == 1 + 4 + 16
    covered = np.zeros((600, 1000), bool)
    for x0, y0, x1, y1 in everything.crop_boxes((600, 1000), 2, 512 / 1500)[5:]:
        covered[y0:y1, x0:x1] = True
    assert covered.all()


def test_small_regions():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5, 5] = False  # a hole of one pixel
    mask[15:17, 15:17] = True  # an island of four
    tidy, changed = everything.without_small_regions(mask, 5)
    assert changed and tidy.sum() == 100 and tidy[5, 5] and not tidy[15, 15]
    assert not everything.without_small_regions(mask, 1)[1]
    only = np.zeros((20, 20), bool)
    only[3, 3] = only[8, 8:10] = True
    assert everything.without_small_regions(only, 50)[0].sum() == 2  # the largest stays


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--points=121,20"],
            r"points 121,20: \(121, 20\) lies outside .*street.png of 121 x 90 pixels \(x 0..120 to the right",
        ),
        (["--points=20,100"], r"\(20, 100\) lies outside"),
        (["--box=10,10,200,50"], "lies outside"),
        (["--points=1,x"], "'1,x': expected X,Y"),
        (["--points=1,2,7"], "label 7: expected 1 .* or 0"),
        (["--points= "], "expected X,Y"),
        (["--box=30,10,20,50"], "right and lower end must lie beyond"),
        (["--points=1,2", "--points=3,4", "--box=0,0,5,5"], "2 --points and 1 --box"),
        ([], "exactly one of the two"),
        (["--everything", "--points=1,2"], "exactly one of the two"),
        (["--everything", "--points-per-side=0"], "--points-per-side=0: expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(goldens, photograph, tmp_path, capsys, flags, message):
    assert run(goldens, photograph, tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_other_networks_and_missing_heads_are_refused(goldens, photograph, tmp_path, capsys):
    model = "resnet_torchvision/resnet50-tiny.pth"
    arguments = ["segment", f"--model={goldens / model}", f"--input={photograph}", f"--output={tmp_path}", "--points=3,4"]
    assert cli.main(arguments) == 4
    assert "is a ResNet, which takes no prompts: expected SAM" in capsys.readouterr().err
    arguments[1] = f"--model={goldens / 'sam_original/sam_vit_tiny.pth'}"
    assert cli.main(arguments) == 2
    assert "--set decoder_heads=N" in capsys.readouterr().err


def test_efficient_sam_is_told_what_it_cannot_take():
    class Module:
        max_slots = 6

    segment_prompts.check_slots(segment_prompts.parse(["1,2;3,4"], ["0,0,5,5"]), Module)
    for points in ("1,2,0", ";".join(["1,2"] * 7)):
        with pytest.raises(ConfigError, match="takes up to 6 positive points"):
            segment_prompts.check_slots(segment_prompts.parse([points], []), Module)
