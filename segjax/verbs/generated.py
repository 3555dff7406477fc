"""The folder that `generate` fills: images and `manifest.jsonl`, so kept that a run killed at any moment goes on where it stopped.

An image is written whole, then its row is appended; a row whose image is missing or damaged counts for nothing. In the end the rows are
sorted, so a run in pieces leaves the bytes of an unbroken one. `generation.json` holds what every image has in common and, until all are
there, how many are wanted ("unfinished"), by which a reader knows half a set.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from segjax.errors import ConfigError, SegjaxError
from segjax.runtime import compile as compiler
from segjax.runtime.preemption import Preemption
from segjax.verbs import folder, startup
from segjax.weights import safetensors_io

MANIFEST, SETTINGS, UNFINISHED = "manifest.jsonl", "generation.json", "unfinished"


class Generated:
    """One such folder. settings: what all its images share; a folder made with others is refused (ConfigError).

    Many processes share the folder: each appends to a manifest of its own, the first one joins them.
    """

    def __init__(self, place: pathlib.Path, settings: Mapping[str, Any]):
        self.place, self.settings = place, dict(settings)
        process = jax.process_index()
        self._rows = place / (f".manifest.{process}.jsonl" if process else MANIFEST)
        if process == 0:
            folder.writable(place)
            old = self._check()
            folder.write_json(place / SETTINGS, {**self.settings, **({UNFINISHED: old[UNFINISHED]} if UNFINISHED in old else {})})
            for left in place.glob(".*.png.tmp"):
                left.unlink()
            self.join()
        startup.barrier("generated: joined")
        self.done = set(self._read(place / MANIFEST))

    def begin(self, count: int) -> None:
        """Notes that `count` images are wanted and some are not there."""
        if jax.process_index() == 0:
            folder.write_json(self.place / SETTINGS, {**self.settings, UNFINISHED: count})

    def end(self) -> None:
        """Notes that all are there."""
        if jax.process_index() == 0:
            folder.write_json(self.place / SETTINGS, self.settings)

    def join(self) -> int:
        """Puts every process's rows into the manifest, in the images' order, and returns how many there are."""
        parts = [self.place / MANIFEST, *sorted(self.place.glob(".manifest.*.jsonl"))]
        rows = {index: row for part in parts for index, row in self._read(part).items()}
        temporary = self.place / f".{MANIFEST}.tmp"
        temporary.write_text("".join(f"{json.dumps(rows[index])}\n" for index in sorted(rows)), encoding="utf-8")
        temporary.replace(parts[0])
        for part in parts[1:]:
            part.unlink()
        return len(rows)

    def save(self, image: np.ndarray, row: Mapping[str, Any]) -> None:
        """Writes an image uint8 [H,W,3] and its row, {"image": name, "index": ..., ...}. SegjaxError: the disk is full."""
        path = self.place / row["image"]
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                Image.fromarray(image).save(file, "PNG", compress_level=4)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            line = json.dumps({**row, "sha256": safetensors_io.sha256(path)})
            with open(self._rows, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            raise SegjaxError(f"{path}: cannot be written ({error.strerror}): free space, and the same command goes on") from error

    def _check(self) -> dict[str, Any]:
        """What generation.json holds, {} where there is none. ConfigError: images of other settings."""
        old = folder.read_json(self.place / SETTINGS)
        if old is None:
            if (self.place / MANIFEST).exists():
                raise ConfigError(f"--output={self.place}: holds a {MANIFEST} without {SETTINGS}: choose another folder")
            return {}
        changed = [f"{key}: {old.get(key)!r} -> {value!r}" for key, value in self.settings.items() if old.get(key) != value]
        if changed:
            raise ConfigError(
                f"{self.place}: its images were made with other settings ({'; '.join(changed)}): choose another folder, or move this one"
            )
        return old

    def _read(self, path: pathlib.Path) -> dict[int, dict[str, Any]]:
        """index -> row of the images that are there as they were written; a line that a kill cut off is none."""
        rows = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                image = self.place / row["image"]
                if image.is_file() and safetensors_io.sha256(image) == row["sha256"]:
                    rows[int(row["index"])] = row
            except (ValueError, KeyError, TypeError):
                continue
        return rows


def work(
    units: Sequence[int],
    dispatches: int,
    start: Callable[[Sequence[int]], Callable[[], np.ndarray]],
    at_once: int,
    save: Callable[[Sequence[int], np.ndarray], None],
    preemption: Preemption,
) -> str | None:
    """Dispatches units, `at_once` of them at a time, one dispatch ahead of writing; returns the signal that stopped it, or None.

    start: unit numbers -> what fetches their images. Every process asks for a signal equally often, so that all stop together.
    """
    waiting: tuple[Sequence[int], Callable[[], np.ndarray]] | None = None
    stopped = None
    for n in range(dispatches):
        stopped = preemption.requested(n)
        if stopped:
            break
        part = units[n * at_once : (n + 1) * at_once]
        with compiler.out_of_memory_told():
            ahead = (part, start(part)) if part else None
            if waiting:
                save(waiting[0], waiting[1]())
        waiting = ahead
    if waiting:
        save(waiting[0], waiting[1]())
    return stopped


def digest(value: Any) -> str:
    """sha256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
