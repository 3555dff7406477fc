"""The published layouts made small and in their own form, and what each reader must find there."""

import json
import struct
import zlib

import numpy as np
from PIL import Image

from segjax.data.readers.acdc import ACDC
from segjax.data.readers.bdd100k import BDD100K
from segjax.data.readers.camvid import CamVid
from segjax.data.readers.cityscapes import Cityscapes
from segjax.data.readers.dark_zurich import DarkZurich
from segjax.data.readers.generated import Generated
from segjax.data.readers.gta5 import GTA5
from segjax.data.readers.mapillary import Mapillary
from segjax.data.readers.synthia import Synthia
from segjax.data.readers.user import User

SIZE = (6, 8)


def filtered(rows: np.ndarray, kinds) -> bytes:
    """PNG's filters 0..4 applied to rows uint8 [H, 6 W], row y with kinds[y]: the definition, byte by byte."""
    height, width = rows.shape
    out = bytearray()
    for y in range(height):
        out.append(kinds[y])
        for x in range(width):
            left = int(rows[y, x - 6]) if x >= 6 else 0
            up = int(rows[y - 1, x]) if y else 0
            corner = int(rows[y - 1, x - 6]) if y and x >= 6 else 0
            estimate = left + up - corner
            paeth = min((abs(estimate - left), 0, left), (abs(estimate - up), 1, up), (abs(estimate - corner), 2, corner))[2]
            out.append((int(rows[y, x]) - (0, left, up, (left + up) // 2, paeth)[kinds[y]]) % 256)
    return bytes(out)


def write_png16(path, pixels: np.ndarray, kinds=None, parts: int = 1, bits: int = 16, colour: int = 2) -> None:
    """pixels uint16 [H,W,3] as a 16-bit RGB PNG whose compressed data is cut into `parts` chunks."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, width * 6)
    data = zlib.compress(filtered(rows, kinds or [0] * height))
    cuts = [len(data) * k // parts for k in range(parts + 1)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), (b"tEXt", b"Comment\0made here")]
    chunks += [(b"IDAT", data[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)] + [(b"IEND", b"")]
    whole = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)


def image(path, size=SIZE, **keywords):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path, **keywords)


def label(path, raw, size=SIZE, palette: bool = False):
    """A label whose left half is raw[0], right half raw[1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(size, raw[0], np.uint8)
    pixels[:, size[1] // 2 :] = raw[1]
    picture = Image.fromarray(pixels)
    if palette:  # colours that say nothing about the ids, as the game's files have them
        picture.putpalette([(37 * k) % 256 for k in range(768)])
        assert picture.mode == "P"
    picture.save(path)


def gta5(root):
    for number, height in ((1, 6), (2, 5), (15188, 6), (17705, 6), (20001, 6), (22501, 6)):
        image(root / f"images/{number:05d}.png", (height, 8))
        label(root / f"labels/{number:05d}.png", (7, 33), (height, 8), palette=True)


def synthia(root):
    for number in range(2):
        image(root / f"RGB/{number:07d}.png")
        ids = np.full(SIZE, 3, np.uint16)
        ids[:, 4:] = 12
        write_png16(root / f"GT/LABELS/{number:07d}.png", np.stack([ids, ids * 700, ids * 0], -1), [4, 3, 2, 1, 0, 4])
        label(root / f"synthia_mapped_to_cityscapes/{number:07d}.png", (3, 21))
        image(root / f"GT/COLOR/{number:07d}.png")


def cityscapes(root):
    for split, city in (("train", "aachen"), ("train", "bonn"), ("val", "ulm"), ("test", "bonn"), ("train_extra", "erlangen")):
        stem = f"{city}/{city}_000000_000019"
        image(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png")
        for quality in ("gtFine", "gtCoarse") if split in ("train", "val") else ("gtCoarse",) if split != "test" else ("gtFine",):
            place = f"{quality}/{split}/{stem}_{quality}"
            label(root / f"{place}_labelIds.png", (7, 26) if quality == "gtFine" else (0, 26))
            label(root / f"{place}_labelTrainIds.png", (0, 14))
            label(root / f"{place}_instanceIds.png", (0, 1))
            pixels = np.array([[(128, 64, 128, 255)] * 4 + [(70, 70, 70, 255)] * 4] * 6, np.uint8)
            Image.fromarray(pixels).save(root / f"{place}_color.png")


def bdd100k(root):
    for split in ("train", "val", "test"):
        image(root / f"images/10k/{split}/0a0a.jpg")
        if split != "test":
            label(root / f"labels/sem_seg/masks/{split}/0a0a.png", (0, 13), palette=True)
            label(root / f"labels/sem_seg/colormaps/{split}/0a0a.png", (90, 91))


def bdd100k_old(root):
    image(root / "images/val/0a0a.jpg")
    label(root / "gtFine/val/0a0a_train_id.png", (0, 13))


def mapillary(root):
    for split in ("training", "validation", "testing"):
        image(root / f"{split}/images/x_-Y.jpg")
        if split != "testing":
            label(root / f"{split}/v1.2/labels/x_-Y.png", (24, 55), palette=True)
            label(root / f"{split}/v2.0/labels/x_-Y.png", (35, 108), palette=True)


def mapillary_old(root):
    image(root / "training/images/x_-Y.jpg")
    label(root / "training/labels/x_-Y.png", (24, 55), palette=True)
    label(root / "training/instances/x_-Y.png", (1, 2))


def acdc(root):
    for condition in ("fog", "night", "rain", "snow"):
        for split in ("train", "val", "test", "train_ref"):
            stem = f"{condition}/{split}/GOPR0475/GOPR0475_frame_000041"
            image(root / f"rgb_anon/{stem}_{'rgb_ref_anon' if 'ref' in split else 'rgb_anon'}.png")
            if split in ("train", "val"):
                label(root / f"gt/{stem}_gt_labelTrainIds.png", (0, 13))
                label(root / f"gt/{stem}_gt_labelIds.png", (7, 26))
                label(root / f"gt/{stem}_gt_invIds.png", (1, 0))


def dark_zurich(root):
    for place in ("train/night", "train/twilight", "val/night"):
        image(root / f"rgb_anon/{place}/GOPR0356/GOPR0356_frame_000324_rgb_anon.png")
    label(root / "gt/val/night/GOPR0356/GOPR0356_frame_000324_gt_labelTrainIds.png", (0, 13))
    image(root / "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000324_ref_rgb_anon.png")


def camvid(root):
    for split in ("train", "val", "test"):
        image(root / f"{split}/0001TP_006690.png")
        label(root / f"{split}annot/0001TP_006690.png", (3, 11))


def camvid_colour(root):
    image(root / "val/0001TP_006690.png")
    (root / "val_labels").mkdir()
    pixels = np.array([[(128, 0, 192)] * 4 + [(0, 0, 0)] * 4] * 6, np.uint8)  # a driven lane's marking, void
    Image.fromarray(pixels).save(root / "val_labels/0001TP_006690_L.png")


def generated(root):
    lines = []
    for index in range(4):
        name = f"images/{'wxyz'[3 - index]}.png"
        image(root / name)
        label(root / f"pseudo/{name}", (0, 13))
        lines.append(json.dumps({"image": name, "prompt": "a street at dusk", "class": "bus", "seed": index}))
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def user(root):
    image(root / "images/a.jpg")
    label(root / "labels/a.png", (1, 2))
    (root / "segjax.json").write_text('{"1": "road", "2": "car"}')


def user_colour(root):
    image(root / "images/train/a.jpg")
    (root / "labels/train").mkdir(parents=True)
    Image.fromarray(np.array([[(1, 2, 3)] * 4 + [(4, 5, 6)] * 4] * 6, np.uint8)).save(root / "labels/train/a.png")
    meaning = {"label_space": "camvid11", "encoding": {"#010203": "road", "[4, 5, 6]": None}}
    (root / "segjax.json").write_text(json.dumps(meaning))


def user_classes(root):
    image(root / "images/a.jpg")
    label(root / "labels/a.png", (7, 9))
    meaning = {"label_space": {"kerb": "#ff0000", "lane": "[0, 255, 0]"}, "encoding": {"7": "lane", "9": None}}
    (root / "segjax.json").write_text(json.dumps(meaning))


TABLE = [
    # layout, reader, keywords, names, train ids of the left and right half (None: unlabelled)
    (gta5, GTA5, {}, ["00001.png", "00002.png", "20001.png", "22501.png"], (0, 18)),
    (gta5, GTA5, {"broken": True, "include": ["1"]}, ["00001.png", "15188.png", "17705.png", "20001.png", "22501.png"], (0, 18)),
    (gta5, GTA5, {"split": "train"}, ["00001.png", "00002.png"], (0, 18)),
    (gta5, GTA5, {"split": "test", "resize": (3, 4)}, ["22501.png"], (0, 18)),
    (gta5, GTA5, {"names": ["00002.png", "15188"]}, ["00002.png"], (0, 18)),
    (synthia, Synthia, {}, ["0000000.png", "0000001.png"], (0, 17)),
    (synthia, Synthia, {"label_space": "synthia16"}, ["0000000.png", "0000001.png"], (0, 14)),
    (synthia, Synthia, {"derived": True}, ["0000000.png", "0000001.png"], (0, 3)),
    (cityscapes, Cityscapes, {}, ["aachen/aachen_000000_000019_leftImg8bit.png", "bonn/bonn_000000_000019_leftImg8bit.png"], (0, 13)),
    (cityscapes, Cityscapes, {"split": "val", "labels": "labelTrainIds"}, ["ulm/ulm_000000_000019_leftImg8bit.png"], (0, 14)),
    (cityscapes, Cityscapes, {"split": "val", "labels": "color"}, ["ulm/ulm_000000_000019_leftImg8bit.png"], (0, 2)),
    (cityscapes, Cityscapes, {"split": "val", "coarse": True}, ["ulm/ulm_000000_000019_leftImg8bit.png"], (255, 13)),
    (cityscapes, Cityscapes, {"split": "test"}, ["bonn/bonn_000000_000019_leftImg8bit.png"], None),
    (cityscapes, Cityscapes, {"split": "train_extra"}, ["erlangen/erlangen_000000_000019_leftImg8bit.png"], (255, 13)),
    (bdd100k, BDD100K, {}, ["0a0a.jpg"], (0, 13)),
    (bdd100k, BDD100K, {"split": "test"}, ["0a0a.jpg"], None),
    (bdd100k_old, BDD100K, {"split": "val"}, ["0a0a.jpg"], (0, 13)),
    (mapillary, Mapillary, {}, ["x_-Y.jpg"], (0, 13)),
    (mapillary, Mapillary, {"version": "2.0", "split": "val"}, ["x_-Y.jpg"], (0, 13)),
    (mapillary, Mapillary, {"split": "test"}, ["x_-Y.jpg"], None),
    (mapillary_old, Mapillary, {}, ["x_-Y.jpg"], (0, 13)),
    (acdc, ACDC, {"condition": "night", "split": "val"}, ["night/val/GOPR0475/GOPR0475_frame_000041_rgb_anon.png"], (0, 13)),
    (acdc, ACDC, {}, [f"{c}/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png" for c in ("fog", "night", "rain", "snow")], (0, 13)),
    (acdc, ACDC, {"condition": ("snow",), "split": "test"}, ["snow/test/GOPR0475/GOPR0475_frame_000041_rgb_anon.png"], None),
    (acdc, ACDC, {"condition": "fog", "split": "train_ref"}, ["fog/train_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png"], None),
    (acdc, ACDC, {"condition": "fog", "encoding": "labelId"}, ["fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png"], (0, 13)),
    (dark_zurich, DarkZurich, {}, ["GOPR0356/GOPR0356_frame_000324_rgb_anon.png"], None),
    (dark_zurich, DarkZurich, {"time": "twilight"}, ["GOPR0356/GOPR0356_frame_000324_rgb_anon.png"], None),
    (dark_zurich, DarkZurich, {"split": "val"}, ["GOPR0356/GOPR0356_frame_000324_rgb_anon.png"], (0, 13)),
    (camvid, CamVid, {}, ["0001TP_006690.png"], (3, 255)),
    (camvid, CamVid, {"split": "test", "label_space": "cityscapes19"}, ["0001TP_006690.png"], (0, 255)),
    (camvid_colour, CamVid, {"split": "val"}, ["0001TP_006690.png"], (3, 255)),
    (generated, Generated, {}, [f"images/{k}.png" for k in "zyxw"], None),
    (generated, Generated, {"prefix": 2, "labels": "pseudo"}, ["images/z.png", "images/y.png"], (0, 13)),
    (user, User, {}, ["a.jpg"], (0, 13)),
    (user, User, {"encoding": {"1": "sky", "2": 5}}, ["a.jpg"], (10, 5)),
    (user_colour, User, {"split": "train"}, ["a.jpg"], (3, 255)),
    (user_classes, User, {}, ["a.jpg"], (1, 255)),
]
