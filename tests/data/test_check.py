"""Every fault planted into a good folder is found with its cause, and nothing else is; good folders and real data raise no alarm."""

import pathlib
import time

import numpy as np
import pytest
from PIL import Image

from segjax.data import encodings, label_spaces
from segjax.data.check import Findings, check
from segjax.data.check_label import blended
from segjax.data.faults import KINDS, Fault
from segjax.data.folders import FolderDataset
from segjax.data.procedural import StreetScenes

SIZE = (48, 64)
LABEL = np.kron(np.array([[0, 5, 1, 9], [3, 11, 7, 2], [8, 4, 10, 6]], np.uint8), np.ones((16, 16), np.uint8))
"""Twelve blocks: every class of camvid11 and void."""
PHOTO = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
COLOURS = np.array([*label_spaces.get("camvid11").palette, (0, 0, 0)], np.uint8)


def save(path: pathlib.Path, array: np.ndarray, **keywords) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **keywords)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "bad"):
        save(tmp_path / "images" / f"{name}.png", PHOTO)
        save(tmp_path / "labels" / f"{name}.png", np.roll(LABEL, 16, 1))
    return tmp_path


def walk(folder, images="images", labels: str | None = "labels", space="camvid11", encoding=None, **keywords) -> Findings:
    labels = str(folder / labels) if labels else None
    return check(FolderDataset(str(folder / images), labels, label_space=space, encoding=encoding, strict=False), **keywords)


def test_a_good_folder_has_nothing_to_say(folder):
    findings = walk(folder)
    assert findings.ok and findings.faults == [] and findings.examples == 4 and findings.sizes == {SIZE: 4}
    assert findings.pixels[:11].tolist() == [1024] * 11 and findings.pixels[255] == 1024 and findings.images_with[:11].tolist() == [4] * 11
    assert walk(folder, labels=None).faults == [] and walk(folder, labels=None).pixels.sum() == 0


def rotated(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def colour_label(path):
    save(path, COLOURS[LABEL])


def renumbered_palette(path):
    Image.fromarray(COLOURS[LABEL]).quantize(16).save(path)


def wide(path, values):
    Image.fromarray(values.astype(np.uint16)).save(path)


def rgb16(path):
    """A 16-bit RGB PNG as SYNTHIA's labels are: nothing in this environment but PIL's chunks writes one, so by hand."""
    import struct
    import zlib

    rows = np.zeros((*SIZE, 3), ">u2")
    rows[..., 0] = LABEL
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    )


def shrunk_with_blending(path):
    big = Image.fromarray(np.kron(LABEL, np.ones((3, 3), np.uint8)))
    big.resize((SIZE[1] - 1, SIZE[0] - 1), Image.Resampling.BILINEAR).resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR).save(path)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# fault -> (what is done to images/bad.png, what to labels/bad.png, kind, words of the line, whether a run would be wrong)
PLANTED = {
    "no label": (None, lambda p: p.unlink(), "unpaired", ["bad: image without a label", "missing"], True),
    "no image": (lambda p: p.unlink(), None, "unpaired", ["bad: label without an image", "missing"], True),
    "other case": (None, lambda p: p.rename(p.with_name("BAD.png")), "unpaired", ["'BAD'", "upper and lower case"], True),
    "other name": (None, lambda p: p.rename(p.with_name("bad_mask.png")), "unpaired", ["may be 'bad_mask'", "list file"], True),
    "empty image": (lambda p: p.write_bytes(b""), None, "unreadable", ["images/bad.png", "0 bytes", "full disk"], True),
    "empty label": (None, lambda p: p.write_bytes(b""), "unreadable", ["labels/bad.png", "0 bytes"], True),
    "cut image": (half, None, "unreadable", ["images/bad.png", "damaged or cut off", "stopped"], True),
    "cut label": (None, half, "unreadable", ["labels/bad.png", "damaged or cut off"], True),
    "HTML image": (lambda p: p.write_text("<!DOCTYPE html><html>"), None, "unreadable", ["HTML page", "login"], True),
    "HTML label": (None, lambda p: p.write_text("<html>sign in"), "unreadable", ["HTML page", "login"], True),
    "error message": (lambda p: p.write_text("<?xml version='1.0'?><Error>AccessDenied"), None, "unreadable", ["error message"], True),
    "LFS pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"), None, "unreadable", ["git lfs pull"], True),
    "16-bit image": (lambda p: wide(p, np.full(SIZE, 900)), None, "image_depth", ["more than 8 bits"], True),
    "grey image": (lambda p: save(p, PHOTO[..., 0]), None, "image_mode", ["grey"], False),
    "RGBA image": (lambda p: Image.fromarray(PHOTO).convert("RGBA").save(p), None, "image_mode", ["alpha is dropped"], False),
    "CMYK image": (lambda p: Image.fromarray(PHOTO).convert("CMYK").save(p, "JPEG"), None, "image_mode", ["CMYK", "print"], False),
    "palette image": (lambda p: Image.fromarray(PHOTO).quantize(32).save(p), None, "image_mode", ["palette"], False),
    "quarter turn": (
        lambda p: save(p, PHOTO, format="JPEG", exif=rotated(6)),
        None,
        "exif",
        ["turned by 90 degrees", "orientation 6", "48x64 upright", "remove the EXIF tag"],
        True,
    ),
    "half turn": (lambda p: save(p, PHOTO, exif=rotated(3)), None, "exif", ["180 degrees", "sizes cannot tell"], False),
    "half size": (None, lambda p: save(p, LABEL[::2, ::2]), "size", ["labels/bad.png: 32x24", "64x48", "another resolution (0.5x)"], True),
    "label on its side": (None, lambda p: save(p, LABEL.T), "size", ["48x64", "turned by a quarter"], True),
    "another's label": (None, lambda p: save(p, LABEL[:40]), "size", ["64x40", "another image"], True),
    "grey copy": (
        None,
        lambda p: Image.fromarray(COLOURS[LABEL]).convert("L").save(p),
        "label_ids",
        ["out of range for camvid11", "grey copy"],
        True,
    ),
    "one stray id": (None, lambda p: save(p, np.where(LABEL == 3, 99, LABEL)), "label_ids", ["[99]", "stray ids"], True),
    "label ids": (None, lambda p: save(p, LABEL + 22), "label_ids", ["22, 23", "labelId"], True),
    "counted from 1": (None, lambda p: save(p, LABEL + 1), "label_ids", ["[12]", "count from 1", "subtract 1"], True),
    "one class more": (None, lambda p: save(p, np.where(LABEL == 11, 12, LABEL)), "label_ids", ["[12]", "12 is void"], True),
    "multiplied": (None, lambda p: save(p, LABEL * 20), "label_ids", ["multiplied by 20", "divide"], True),
    "16-bit ids": (None, lambda p: wide(p, LABEL), "label_depth", ["8-bit ids", "16 bits"], True),
    "instance ids": (
        None,
        lambda p: wide(p, LABEL.astype(np.uint16) % 2 * 24_000 + 26_001 - 24_000),
        "label_depth",
        ["instance ids"],
        True,
    ),
    "depth map": (None, lambda p: wide(p, np.arange(48 * 64).reshape(SIZE)), "label_depth", ["depth, disparity"], True),
    "16-bit RGB": (None, rgb16, "label_depth", ["SYNTHIA's form", "--dataset=synthia"], True),
    "colours": (None, colour_label, "label_colour", ["RGB", "camvid_color"], True),
    "other colours": (None, lambda p: save(p, 255 - COLOURS[LABEL]), "label_colour", ["most often #", "JSON file"], True),
    "overlay": (None, lambda p: save(p, PHOTO // 2 + COLOURS[LABEL] // 2), "label_colour", ["overlay"], True),
    "equal channels": (None, lambda p: save(p, np.stack([LABEL] * 3, -1)), "label_colour", ["three equal channels", "ids [0, 1"], True),
    "renumbered palette": (None, renumbered_palette, "label_palette", ["has the colour of", "numbered its colours anew"], True),
    "JPEG": (None, lambda p: save(p, LABEL, format="JPEG"), "label_jpeg", ["JPEG file (L)", "with loss"], True),
    "JPEG of colours": (None, lambda p: save(p, COLOURS[LABEL], format="JPEG"), "label_jpeg", ["JPEG file (RGB)"], True),
    "blended": (None, shrunk_with_blending, "label_blended", ["resized with blending", "nearest"], True),
    "0/255 mask": (
        None,
        lambda p: save(p, np.where(LABEL < 6, 255, 0).astype(np.uint8)),
        "label_binary",
        ["[0, 255]", "not ignore"],
        False,
    ),
    "1-bit mask": (None, lambda p: Image.fromarray(LABEL < 6).save(p), "label_binary", ["1 bit a pixel"], True),
    "nothing but ignore": (None, lambda p: save(p, np.full(SIZE, 255, np.uint8)), "label_ignored", ["nothing but ignore"], False),
    "nothing but void": (None, lambda p: save(p, np.full(SIZE, 11, np.uint8)), "label_ignored", ["nothing but ignore"], False),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_alone(folder, name):
    to_image, to_label, kind, words, wrong = PLANTED[name]
    for change, path in ((to_image, folder / "images" / "bad.png"), (to_label, folder / "labels" / "bad.png")):
        if change:
            change(path)
    findings = walk(folder, threads=2)
    faults = findings.faults
    assert [fault.kind for fault in faults] == [kind], [fault.line for fault in faults]
    assert faults[0].wrong == wrong and findings.ok == (not wrong)
    assert all(word in faults[0].line for word in words), faults[0].line
    assert faults[0].cause and faults[0].fix


def test_all_faults_at_once(tmp_path):
    expected = {}
    for number, (name, (to_image, to_label, kind, _, wrong)) in enumerate(PLANTED.items()):
        if kind == "unpaired":
            continue
        for side, array, change in (("images", PHOTO, to_image), ("labels", LABEL, to_label)):
            path = tmp_path / side / f"{number:02d}.png"
            save(path, array)
            if change:
                change(path)
        expected[f"{number:02d}.png"] = (kind, wrong), name
    findings = walk(tmp_path)
    found = {pathlib.Path(fault.file).name: (fault.kind, fault.wrong) for fault in findings.faults if fault.kind != "set"}
    assert found == {file: outcome for file, (outcome, _) in expected.items()}
    assert len([fault for fault in findings.faults if fault.kind != "set"]) == len(expected)
    assert walk(tmp_path, threads=1).faults == findings.faults
    order = [list(KINDS).index(fault.kind) for fault in findings.wrong]
    assert order == sorted(order) and findings.wrong + findings.hints != []


def test_a_shadow_file_of_macos(folder):
    for side in ("images", "labels"):
        (folder / side / "._a.png").write_bytes(b"\x00\x05\x16\x07 no image")
    assert walk(folder).ok  # a search by folder passes them over
    listed = [(f"images/{name}.png", f"labels/{name}.png") for name in ("a", "._a")]
    wrong = check(FolderDataset(str(folder), file_list=listed, label_space="camvid11", strict=False)).wrong
    assert wrong and all("macOS" in fault.line for fault in wrong)


def test_a_turned_label_beside_a_turned_image_is_good(folder):
    save(folder / "images" / "bad.png", PHOTO, format="JPEG", exif=rotated(6))
    save(folder / "labels" / "bad.png", np.rot90(LABEL, -1))
    assert walk(folder).ok


def test_readable_forms_raise_no_alarm(folder):
    """A palette that names its ids, label ids with Cityscapes' palette, colours and 16 bits read as such."""
    picture = Image.fromarray(LABEL, "P")
    picture.putpalette(COLOURS.tobytes())
    picture.save(folder / "labels" / "bad.png")
    assert walk(folder).faults == []
    save(folder / "drawn" / "a.png", COLOURS[LABEL])
    save(folder / "one" / "a.png", PHOTO)
    assert walk(folder, "one", "drawn", encoding="camvid_color").faults == []
    rgb16(folder / "drawn" / "a.png")
    assert walk(folder, "one", "drawn", space="cityscapes19", encoding="synthia").ok
    ids = np.flatnonzero(encodings.decode_table("cityscapes19", "labelId") != 255).astype(np.uint8)
    table = np.zeros((256, 3), np.uint8)
    table[ids] = label_spaces.get("cityscapes19").palette
    table[34] = (0, 0, 142)  # a licence plate has the colour of a car and is ignored
    picture = Image.fromarray(np.kron(np.resize(np.array([*ids, 34]), (3, 8)).astype(np.uint8), np.ones((16, 8), np.uint8)), "P")
    picture.putpalette(table.tobytes())
    picture.save(folder / "drawn" / "a.png")
    assert walk(folder, "one", "drawn", space="cityscapes19", encoding="labelId").faults == []


def test_colours_that_are_unknown(folder):
    save(folder / "one" / "a.png", PHOTO)
    save(folder / "drawn" / "a.png", np.where(LABEL[..., None] == 3, np.uint8(7), COLOURS[LABEL]))
    (fault,) = walk(folder, "one", "drawn", encoding="camvid_color").wrong
    assert fault.kind == "label_ids" and "#070707" in fault.line


def test_whole_sets_of_masks_and_of_ignore_are_wrong(folder):
    for name in ("a", "b", "c", "bad"):
        save(folder / "labels" / f"{name}.png", np.where(LABEL < 6, 255, 0).astype(np.uint8))
    (fault,) = walk(folder).wrong
    assert fault.kind == "set" and "binary masks" in fault.line
    for name in ("a", "b", "c", "bad"):
        save(folder / "labels" / f"{name}.png", np.full(SIZE, 11, np.uint8))
    (fault,) = walk(folder).wrong
    assert "every pixel of every label is ignore" in fault.line


def test_classes_and_sizes_are_hints(folder):
    for name in ("a", "b", "c"):
        save(folder / "labels" / f"{name}.png", np.full(SIZE, 3, np.uint8))
    save(folder / "images" / "bad.png", PHOTO[:32])
    save(folder / "labels" / "bad.png", np.full((32, 64), 4, np.uint8))
    findings = walk(folder)
    assert findings.ok and findings.never == tuple(c for c in label_spaces.get("camvid11").classes if c not in ("road", "sidewalk"))
    assert [fault.line.split(":")[0] for fault in findings.hints] == ["classes that never occur", "2 image sizes"]


def test_noise_and_gradients_are_not_taken_for_blending():
    noise = np.random.default_rng(0).integers(0, 19, (64, 64)).astype(np.uint8)
    assert not blended(noise) and not blended(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    scene = StreetScenes(size=(128, 256)).label(0)
    assert not blended(scene)
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        for factor in (0.5, 0.8, 2):
            assert blended(np.asarray(Image.fromarray(scene).resize((round(256 * factor), round(128 * factor)), resample)))


def test_any_data_set_and_a_limit():
    seen = []
    findings = check(StreetScenes(size=(64, 128)), limit=4, threads=2, progress=lambda done, total: seen.append((done, total)))
    assert findings.ok and findings.examples == 4 and findings.pixels.sum() == 4 * 64 * 128 and seen == [(k, 4) for k in range(1, 5)]
    unlabelled = check(StreetScenes(size=(64, 128)).unlabelled(), limit=2)
    assert unlabelled.ok and unlabelled.never == () and unlabelled.faults == []


def test_a_data_set_of_another_kind_passes_its_errors_on(folder):
    class Own(FolderDataset):
        def _load(self, index):
            return super()._load(index)

    (folder / "labels" / "a.png").write_bytes(b"")
    save(folder / "labels" / "b.png", np.full(SIZE, 77, np.uint8))
    save(folder / "labels" / "c.png", np.full((8, 8), 1, np.uint8))
    findings = check(Own(str(folder / "images"), str(folder / "labels"), label_space="camvid11"))
    assert [(fault.kind, pathlib.Path(fault.file).name) for fault in findings.wrong] == [
        ("unreadable", "a.png"),
        ("size", "c.png"),
        ("label_ids", "b.png"),
    ]


def test_a_line_has_its_parts_once():
    assert Fault("size", "a.png", "2x2", "why", "how").line == "a.png: 2x2: why; how"
    assert Fault("set", "", "all", "why", "how").line == "all: why; how"
    assert Fault("unreadable", "a", "a whole message").line == "a: a whole message"


def test_real_camvid_is_clean(real_data):
    examples, start = 0, time.process_time()
    for split in ("train", "val"):
        findings = check(FolderDataset(file_list=str(real_data / "camvid" / f"{split}.txt"), label_space="camvid11"))
        assert findings.faults == [] and set(findings.sizes) == {(360, 480)} and findings.pixels[255] > 0
        examples += findings.examples
    assert examples == 468
    # 100 pairs a second on two cores are 20 ms of processor time a pair; 3 are usual. (Wall time would measure the neighbours.)
    assert (time.process_time() - start) / examples < 0.02


def test_real_labels_of_other_sets_raise_no_alarm(real_data):
    cityscapes, carla = real_data / "samples" / "cityscapes", real_data / "carla"
    findings = check(FolderDataset(str(cityscapes / "leftImg8bit"), str(cityscapes / "gtFine"), encoding="labelId"))
    assert findings.ok and findings.examples == 1
    assert check(FolderDataset(str(carla / "images"), str(carla / "labels_cityscapes_trainid"))).ok
