"""The 16-bit reader against a decode by zlib and the five filter definitions alone."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segjax.data import files, png16
from segjax.errors import DataError


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
