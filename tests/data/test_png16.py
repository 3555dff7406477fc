"""The 16-bit reader against a decode by zlib and the five filter definitions alone."""

import numpy as np
import pytest
from PIL import Image
from small_layouts import write_png16

from segjax.data import files, png16
from segjax.errors import DataError


@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [4], [4, 1, 3, 2, 0]])
@pytest.mark.parametrize("parts", [1, 4])
def test_first_channel_is_exact_for_every_filter(tmp_path, kinds, parts):
    pixels = np.random.default_rng(0).integers(0, 65536, (10, 7, 3), np.uint16)
    write_png16(tmp_path / "a.png", pixels, (kinds * 10)[:10], parts)
    assert png16.is_rgb16(tmp_path / "a.png")
    assert (png16.read_first_channel(tmp_path / "a.png") == pixels[..., 0]).all()


def test_the_same_file_in_opencv(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(1).integers(0, 65536, (9, 11, 3), np.uint16)
    write_png16(tmp_path / "a.png", pixels, [4, 3, 2, 1, 0, 4, 3, 2, 1])
    bgr = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert (png16.read_first_channel(tmp_path / "a.png") == bgr[..., 2]).all()


def test_wide_labels_and_what_is_none(tmp_path):
    ids = np.random.default_rng(2).integers(0, 23, (6, 8))
    write_png16(tmp_path / "a.png", np.stack([ids, ids * 300, ids * 0], -1).astype(np.uint16))
    assert (files.read_wide_label(tmp_path / "a.png") == ids).all() and files.read_wide_label(tmp_path / "a.png").dtype == np.uint8
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "copy.png")
    assert (files.read_wide_label(tmp_path / "copy.png") == ids).all()
    Image.new("RGB", (8, 6)).save(tmp_path / "color.png")
    write_png16(tmp_path / "depth.png", np.full((6, 8, 3), 700, np.uint16))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    (tmp_path / "flip.png").write_bytes(whole[:90] + bytes([whole[90] ^ 1]) + whole[91:])
    cases = {"color": "not GT/COLOR", "depth": "holds 700", "cut": "cut off", "flip": "damaged", "gone": "does not exist"}
    for name, match in cases.items():
        with pytest.raises(DataError, match=match):
            files.read_wide_label(tmp_path / f"{name}.png")
