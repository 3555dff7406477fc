"""Contact sheets: what is chosen, what is painted where, and sheets of what cannot be read or has no labels."""

import numpy as np
import pytest
from PIL import Image

from segjax.data import browse, label_spaces
from segjax.data.folders import FolderDataset
from segjax.errors import ConfigError

SPACE = label_spaces.get("camvid11")


@pytest.fixture
def folder(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index in range(5):
        label = np.full((40, 80), 3, np.uint8)
        label[:, : 10 * index] = 8
        label[:4] = 11
        Image.fromarray(np.full((40, 80, 3), 200, np.uint8)).save(tmp_path / "images" / f"drive_{index}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"drive_{index}.png")
    return tmp_path


def dataset(folder, labelled=True):
    return FolderDataset(str(folder / "images"), str(folder / "labels"), label_space="camvid11", labelled=labelled)


def test_indices():
    assert browse.evenly(100, 4) == [0, 33, 66, 99] and browse.evenly(3, 12) == [0, 1, 2] and browse.evenly(9, 1) == [0]
    assert browse.richest(np.array([0, 5, 9, 0, 5]), 4) == [2, 1, 4]


def test_names_must_be_one(folder):
    assert browse.named(dataset(folder), ["_3", "drive_0.png"]) == [3, 0]
    for name in ("drive", "walk"):
        with pytest.raises(ConfigError, match=name):
            browse.named(dataset(folder), [name])


def test_overlay_mixes_in_proportion_and_darkens_the_ignored():
    label = np.array([[3, 255]], np.uint8)
    image = Image.fromarray(np.full((1, 2, 3), 200, np.uint8))
    road = np.array(SPACE.palette[3])
    for opacity in (0.0, 0.5, 1.0):
        found = np.asarray(browse.overlay(image, label, SPACE, opacity)).astype(float)
        np.testing.assert_allclose(found[0, 0], 200 + opacity * (road - 200), atol=1)
        np.testing.assert_allclose(found[0, 1], 200 * (1 - opacity * (1 - browse.SHOWN_IGNORE)), atol=1)


def test_a_sheet_has_every_image_in_its_place(folder):
    cells = [browse.cell(dataset(folder), index, width=160, opacity=1.0) for index in range(5)]
    page = browse.sheet(cells, title="a title", subtitle="5 images", space=SPACE, columns=3, width=160)
    grid = 3 * 160 + 2 * browse.GAP
    assert page.width == 2 * browse.MARGIN + grid + browse.LEGEND + 2 * browse.GAP
    pixels = np.asarray(page)
    top = browse.MARGIN + browse.TITLE_SIZE + browse.SMALL_SIZE + 30
    for index in range(5):
        x = browse.MARGIN + (index % 3) * (160 + browse.GAP)
        y = top + (index // 3) * (80 + browse.NAME_LINE + browse.GAP)
        assert tuple(pixels[y + 60, x + 155]) == SPACE.palette[3], index
        assert tuple(pixels[y + 60, x + 5]) == SPACE.palette[8 if index else 3], index
    legend = pixels[top:, browse.MARGIN + grid + 2 * browse.GAP + 8]
    found = [tuple(colour) for colour in legend]
    first = {colour: found.index(colour) for colour in (SPACE.palette[3], SPACE.palette[8], browse.DARKENED)}
    assert list(first.values()) == sorted(first.values())  # road, car, ignored: the largest first, ignore last
    assert SPACE.palette[0] not in found


def test_what_cannot_be_read_says_so_and_no_labels_no_legend(folder):
    (folder / "images" / "drive_1.png").write_bytes(b"")
    broken = browse.cell(dataset(folder), 1, width=160, opacity=0.5)
    assert broken.picture is None and "the file is empty" in broken.note
    plain = browse.cell(dataset(folder, labelled=False), 0, width=160, opacity=0.5)
    assert plain.histogram is None
    np.testing.assert_array_equal(np.asarray(plain.picture), np.full((80, 160, 3), 200))
    page = browse.sheet([plain, broken], title="t" * 200, subtitle="s", space=SPACE, columns=4, width=160)
    assert page.width == 2 * browse.MARGIN + 2 * 160 + browse.GAP
    assert (np.asarray(page) == browse.EMPTY).all(-1).sum() > 5000


def test_long_names_keep_both_ends():
    font = browse._font(13)
    short = browse._fit("aachen/aachen_000000_000019_leftImg8bit.png", font, 150)
    assert font.getlength(short) <= 150 and short.startswith("aach") and short.endswith(".png") and "..." in short
    assert browse._fit("a.png", font, 150) == "a.png"
