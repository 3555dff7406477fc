"""The prompts that people type: points and boxes in pixels of an image, checked and packed."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from segjax.errors import ConfigError
from segjax.ops import prompts


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One object: points (x, y, label) and a box (x0, y0, x1, y1) or None, in pixels of the image. text: as it was typed."""

    points: tuple[tuple[float, float, int], ...]
    box: tuple[float, float, float, float] | None
    text: str


def parse(points: list[str], boxes: list[str]) -> list[Prompt]:
    """The objects that --points and --box name. ConfigError: not numbers, a label other than 0 and 1, another count of both."""
    if points and boxes and len(points) != len(boxes):
        raise ConfigError(f"{len(points)} --points and {len(boxes)} --box: as many of both (they go in pairs), or one kind alone")
    objects = []
    for n in range(max(len(points), len(boxes))):
        text = points[n] if points else ""
        clicks = tuple(_point(part, text) for part in text.split(";") if part.strip()) if text else ()
        if points and not clicks:
            raise ConfigError(f"--points={text}: expected X,Y or X,Y,LABEL, several with ;")
        box = _box(boxes[n]) if boxes else None
        words = ([f"points {text}"] if text else []) + ([f"box {boxes[n]}"] if boxes else [])
        objects.append(Prompt(clicks, box, ", ".join(words)))
    return objects


def _point(text: str, flag: str) -> tuple[float, float, int]:
    values = _numbers(text, f"--points={flag}", "X,Y or X,Y,LABEL, several with ;", (2, 3))
    label = values[2] if len(values) == 3 else 1
    if label not in (0, 1):
        raise ConfigError(f"--points={flag}: label {label:g}: expected 1 (on the object) or 0 (not on it)")
    return values[0], values[1], int(label)


def _box(text: str) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _numbers(text, f"--box={text}", "X0,Y0,X1,Y1", (4,))
    if x1 <= x0 or y1 <= y0:
        raise ConfigError(f"--box={text}: its right and lower end must lie beyond its left and upper one (X0,Y0,X1,Y1)")
    return x0, y0, x1, y1


def _numbers(text: str, flag: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts or not np.isfinite(values).all():
        raise ConfigError(f"{flag}: {text!r}: expected {form}")
    return values


def check_inside(objects: list[Prompt], size: tuple[int, int], path: pathlib.Path) -> None:
    height, width = size
    for item in objects:
        corners = [] if item.box is None else [item.box[:2], (item.box[2] - 1, item.box[3] - 1)]  # a box may end at the width
        for x, y, *_ in [*item.points, *corners]:
            if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
                where = f"of {width} x {height} pixels (x 0..{width - 1} to the right, y 0..{height - 1} down)"
                raise ConfigError(f"{item.text}: ({x:g}, {y:g}) lies outside {path} {where}")


def check_slots(objects: list[Prompt], module: Any) -> None:
    """ConfigError for what EfficientSAM cannot be told."""
    if module.max_slots is None:
        return
    for item in objects:
        count = len(item.points) + (2 if item.box else 0)
        if count > module.max_slots or any(label == 0 for *_, label in item.points):
            raise ConfigError(
                f"{item.text}: {type(module).__name__} takes up to {module.max_slots} positive points for each object (a box counts as "
                "two): drop points with label 0, or use SAM or MobileSAM"
            )


def packed(objects: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """All prompts in one shape: points [P,S,2], labels [P,S]."""
    parts = []
    for item in objects:
        xy, kind = np.array([p[:2] for p in item.points]).reshape(-1, 2), np.array([p[2] for p in item.points], np.int32)
        corners = None if item.box is None else np.array(item.box)
        parts.append((xy if len(xy) else None, kind if len(xy) else None, corners))
    slots = prompts.bucket(max(len(prompts.pack(*part)[1]) for part in parts))
    stacked = [prompts.pack(*part, slots=slots) for part in parts]
    return np.stack([points for points, _ in stacked]), np.stack([labels for _, labels in stacked])
