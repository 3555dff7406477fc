"""Flags that several verbs read alike."""

import pathlib

from segjax.data.pairing import IMAGE_SUFFIXES
from segjax.errors import ConfigError, DataError


def parse_size(text: str, flag: str = "--size") -> tuple[int, int] | None:
    """'1024x512' -> (1024, 512), width first as every flag and message has it; '' -> None. ConfigError for anything else."""
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{flag}={text}: expected WIDTHxHEIGHT in pixels, e.g. 1024x512")
    return int(parts[0]), int(parts[1])


def images_in(text: str, flag: str) -> dict[str, pathlib.Path]:
    """A file, or every image under a folder, sorted: relative name without suffix -> path. DataError: none, or two of one name."""
    path = pathlib.Path(text)
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise DataError(f"{flag}={text}: no such file or folder: check the path")
    found: dict[str, pathlib.Path] = {}
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        name = file.relative_to(path).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{flag}={text}: {found[name]} and {file} would be written to one file: move one of them away")
        found[name] = file
    if not found:
        raise DataError(f"{flag}={text}: no image in this folder (looked for {', '.join(IMAGE_SUFFIXES)}): check the path")
    return found
