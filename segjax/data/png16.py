"""The first channel of a 16-bit RGB PNG, exactly: SYNTHIA's label files, which PIL cuts to their (empty) high bytes."""

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_rgb16(path: "str | pathlib.Path") -> bool:
    """Whether the file's header says PNG, RGB, 16 bits a channel. False for anything else, and for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError:
        return False
    return head.startswith(_SIGNATURE) and head[24:26] == b"\x10\x02"


def read_first_channel(path: "str | pathlib.Path") -> np.ndarray:
    """The red channel of a 16-bit RGB PNG, uint16 [H,W]. ValueError when the file is damaged or of another kind.

    PIL's own inflate and filters do the work, told to keep the first 4 of each pixel's 6 bytes as if they were RGBA: red high, red low,
    green high, green low. (Read as an image, PIL keeps each channel's high byte alone: all 0 for ids below 256.)
    """
    width, height, interlaced, data = _parse(pathlib.Path(path).read_bytes())
    pixels = np.asarray(Image.frombytes("RGBA", (width, height), data, "zip", "RGBAXX", interlaced))
    return pixels[..., 0].astype(np.uint16) << 8 | pixels[..., 1]


def _parse(content: bytes) -> tuple[int, int, int, bytes]:
    """(width, height, interlaced, the compressed pixels), every checksum compared."""
    if not content.startswith(_SIGNATURE):
        raise ValueError("it is no PNG file")
    place, header, parts = len(_SIGNATURE), None, []
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place + 4 : place + 8 + length]
        place += 12 + length
        if place > len(content) or zlib.crc32(chunk) != struct.unpack_from(">I", content, place - 4)[0]:
            raise ValueError("it is cut off or a checksum is wrong")
        if chunk[:4] == b"IHDR":
            header = struct.unpack(">IIBBBBB", chunk[4:])
        elif chunk[:4] == b"IDAT":
            parts.append(chunk[4:])
        elif chunk[:4] == b"IEND":
            break
    if header is None or header[2:4] != (16, 2):
        raise ValueError("it is no 16-bit RGB PNG")
    return header[0], header[1], header[6], b"".join(parts)
