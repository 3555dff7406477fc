"""`predict`: label PNGs in three codes at the photographs' own sizes, equal to what `evaluate` counts."""

import json

import numpy as np
import pytest
from PIL import Image

from segjax import cli
from segjax.data import encodings, label_spaces
from segjax.data.procedural import StreetScenes
from segjax.errors import ConfigError
from segjax.verbs import predict

SPACE = label_spaces.get("cityscapes19")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The validation scenes that the run was scored on, as files."""
    folder = tmp_path_factory.mktemp("photographs")
    scenes = StreetScenes(size=(32, 64), look="dusk", split="val", length=3)
    for i in range(len(scenes)):
        Image.fromarray(scenes[i]["image"]).save(folder / f"city_{i:06d}_leftImg8bit.png")
    return folder, np.stack([scenes[i]["label"] for i in range(len(scenes))])


def run(finished, source, out, *changes):
    return cli.main(
        ["predict", f"--config={finished.config}", f"--workdir={finished.workdir}", f"--input={source}", f"--output={out}", *changes]
    )


def read(folder, pattern="*.png"):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob(pattern))]


def test_the_pngs_are_what_evaluate_counted(finished, photographs, tmp_path):
    folder, labels = photographs
    assert run(finished, folder, tmp_path) == 0
    found = np.stack(read(tmp_path))
    assert found.shape == labels.shape and found.dtype == np.uint8
    kept = labels != 255
    counts = np.zeros((19, 19), np.int64)
    np.add.at(counts, (labels[kept], found[kept]), 1)
    scored = json.loads((finished.workdir / "03-fda/eval/dusk-val.json").read_text())
    assert counts.tolist() == scored["confusion"]
    assert len(list(tmp_path.glob("*_overlay.jpg"))) == 3


def test_codes(finished, photographs, tmp_path):
    for ids in predict.IDS:
        assert run(finished, photographs[0], tmp_path / ids, f"--ids={ids}", "--no-overlay") == 0
    train, label, colour = (read(tmp_path / ids) for ids in predict.IDS)
    for t, l, c in zip(train, label, colour, strict=True):
        assert l.ndim == 2 and (l == encodings.encode_labelid(t)).all()
        assert (c == SPACE.colorize(t)).all()
    assert not list(tmp_path.glob("*/*_overlay.jpg"))
    assert sorted(path.name for path in (tmp_path / "labelId").iterdir())[0] == "city_000000_leftImg8bit.png"


def test_own_sizes_and_a_single_file(finished, photographs, tmp_path):
    image = Image.open(sorted(photographs[0].iterdir())[0])
    for name, size in (("a.png", (50, 37)), ("sub/b.jpg", (64, 32))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.resize(size).convert("L" if name == "a.png" else "RGB").save(tmp_path / "in" / name)
    assert run(finished, tmp_path / "in", tmp_path / "out", "--size=64x32") == 0
    assert Image.open(tmp_path / "out/a.png").size == (50, 37) and Image.open(tmp_path / "out/sub/b.png").size == (64, 32)
    assert run(finished, tmp_path / "in/sub/b.jpg", tmp_path / "same") == 0
    same = [np.asarray(Image.open(path)) for path in (tmp_path / "out/sub/b.png", tmp_path / "same/b.png")]
    assert (same[0] == same[1]).all()  # --size is width first: a picture of that size is fed as it is
    assert run(finished, tmp_path / "in/a.png", tmp_path / "one") == 0
    assert Image.open(tmp_path / "one/a.png").size == (50, 37)


def test_views_windows_and_upsampling(finished, photographs, tmp_path):
    """A window larger than the photograph is the whole photograph; smaller ones and other views are not."""
    plain, whole = tmp_path / "plain", tmp_path / "whole"
    assert run(finished, photographs[0], plain) == 0
    assert run(finished, photographs[0], whole, "--window=640x320", "--window-batch=3") == 0
    assert all((a == b).all() for a, b in zip(read(plain), read(whole), strict=True))
    for name, flags in (("windows", ["--window=32x32"]), ("views", ["--scales=0.5,1,1.5", "--flip"]), ("small", ["--size=32x16"])):
        assert run(finished, photographs[0], tmp_path / name, *flags) == 0
        assert [x.shape for x in read(tmp_path / name)] == [(32, 64)] * 3
        assert any((a != b).any() for a, b in zip(read(plain), read(tmp_path / name), strict=True))
    assert run(finished, photographs[0], tmp_path / "nearest", "--size=32x16", "--upsample=prediction") == 0
    for png in read(tmp_path / "nearest"):
        assert (png == np.repeat(np.repeat(png[::2, ::2], 2, 0), 2, 1)).all()


def test_cityscapes_names_are_what_its_evaluation_finds():
    for name, ids, want in (
        ("ulm/ulm_000002_000019_leftImg8bit.png", "labelId", "ulm/ulm_000002_000019_pred_labelIds.png"),
        ("ulm_000002_000019_leftImg8bit.png", "trainId", "ulm_000002_000019_pred_labelTrainIds.png"),
        ("ulm_000002_000019_leftImg8bit.jpg", "color", "ulm_000002_000019_pred_color.png"),
        ("GOPR0475_frame_000244_rgb_anon.png", "labelId", "GOPR0475_frame_000244_rgb_anon.png"),
        ("a.b/street.jpg", "labelId", "a.b/street.png"),
    ):
        assert predict.png_name(name, ids) == want


def test_no_photograph_is_replaced(finished, photographs, tmp_path, capsys):
    image = Image.open(sorted(photographs[0].iterdir())[0])
    for name in ("a.png", "b.jpg"):
        image.save(tmp_path / name)
    before = (tmp_path / "a.png").read_bytes()
    assert run(finished, tmp_path, tmp_path) == 2
    assert "would replace the photograph itself" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (("--input={tmp}/none",), 3, ["none", "no such file or folder"]),
        (("--input={tmp}/empty",), 3, ["empty"]),
        (("--input={tmp}/bad.png",), 3, ["bad.png"]),
        (("--size=32",), 2, ["--size=32", "WIDTHxHEIGHT"]),
        (("--window=32",), 2, ["--window=32", "WIDTHxHEIGHT"]),
        (("--scales=1,x",), 2, ["--scales=1,x", "0.5,1.0"]),
        (("--scales=0",), 2, ["--scales=", "above 0"]),
        (("--window=32x32", "--stride=33x32"), 2, ["--stride", "exceeds window"]),
        (("--ids=ids",), 2, ["--ids"]),
        (("--output={tmp}/bad.png/out",), 2, ["cannot be written"]),
    ],
)
def test_mistakes(changes, code, words, finished, photographs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG not quite")
    changes = [part.replace("{tmp}", str(tmp_path)) for part in changes]
    assert run(finished, photographs[0], tmp_path / "out", *changes) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in words), error


def test_label_ids_exist_for_cityscapes_classes_alone():
    with pytest.raises(ConfigError, match="camvid11"):
        predict._encoder("labelId", label_spaces.get("camvid11"))
    synthia = predict._encoder("labelId", label_spaces.get("synthia16"))
    assert synthia(np.array([0, 9, 255], np.uint8)).tolist() == [7, 23, 0]
