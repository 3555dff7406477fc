"""Prompts from a file: one a line, or JSON Lines with the class that each is about."""

import json
import os
import pathlib
from typing import NamedTuple

from segjax.errors import DataError


class Prompt(NamedTuple):
    """text: what to draw. category: the class that it is about, "" where none is told."""

    text: str
    category: str = ""


def read(path: str | os.PathLike) -> list[Prompt]:
    """The prompts of a text file (its lines that are not blank), or of a .jsonl: {"prompt": "...", "class": "..."} a line.

    DataError: no such file, no prompt in it, a line that is no such object.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}): expected one prompt a line") from None
    parse = _object if path.suffix in (".jsonl", ".json") else lambda line, where: Prompt(line.strip())
    prompts = [parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f"{path}: holds no prompt: expected one a line")
    return prompts


def _object(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f'{where}: not JSON ({error}): expected {{"prompt": "...", "class": "..."}}') from None
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str) or not isinstance(value.get("class", ""), str):
        raise DataError(f'{where}: {line.strip()[:80]}: expected {{"prompt": "...", "class": "..."}}, both text')
    return Prompt(value["prompt"], value.get("class", ""))
