"""What a score leaves behind: `eval/DATASET-SPLIT.json`, `.md`, `.png`, and the lines printed on the way."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.verbs.scoring import Score
from segjax.verbs.text_table import table as table

_NOT_IN_SYNTHIA = {"terrain", "truck", "train"}


def as_json(score: Score, *, step: int | None, weights: str) -> dict[str, Any]:
    """A score as a JSON object, the form that `segjax report` reads. step: of the training, None if unknown. weights: their origin."""
    trial, space = score.trial, score.trial.dataset.label_space
    classes = space.num_classes
    return {
        "dataset": trial.name,
        "split": trial.split,
        "step": step,
        "images": score.images,
        "label_space": space.name,
        "miou": _number(score.miou),
        "headline": trial.headline,
        "means": {name: _number(value) for name, value in score.means.items()},
        "classes": list(space.classes),
        "palette": [list(colour) for colour in space.palette],
        "iou": [_number(value) for value in score.iou],
        "confusion": score.confusion[:classes, :classes].tolist(),
        "misses": score.confusion[:classes, classes].tolist(),
        "size": list(trial.size) if isinstance(trial.size, tuple) else trial.size,
        "inference": {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(trial.how).items()},
        "weights": weights,
    }


def write(folder: pathlib.Path, score: Score, result: Mapping[str, Any]) -> None:
    """Writes `as_json`'s result, its table and picture into `folder`; the JSON last and whole: where it is, the others are."""
    space = score.trial.dataset.label_space
    classes = space.num_classes
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{score.trial.name}-{score.trial.split}"
    stem.with_name(stem.name + ".md").write_text(markdown(result))
    confusion_picture(score.confusion[:classes, :classes], space.classes).save(stem.with_name(stem.name + ".png"))
    temporary = stem.with_name(f".{stem.name}.json.tmp")
    temporary.write_text(json.dumps(result, indent=1))
    temporary.replace(stem.with_name(stem.name + ".json"))


def markdown(result: Mapping[str, Any]) -> str:
    """One score as a Markdown table: per-class IoU in percent, then the means by name."""
    rows = [(name, percent(value)) for name, value in zip(result["classes"], result["iou"], strict=True)]
    rows += [(f"**{name}**", f"**{percent(value)}**") for name, value in result["means"].items()]
    title = f"{result['dataset']}-{result['split']}: {result['images']} images, {result['headline']} {percent(result['miou'])} %"
    return f"# {title}\n\n{table(('class', 'IoU %'), rows)}\n{''.join(_notes(result))}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    """What a mean hides: classes that it leaves out, and classes that the network never answers though they are there."""
    confusion, misses, classes = np.asarray(result["confusion"]), np.asarray(result["misses"]), result["classes"]
    absent = [name for name, value in zip(classes, result["iou"], strict=True) if value is None]
    never = [name for name, n, truth in zip(classes, confusion.sum(0), confusion.sum(1) + misses, strict=True) if n == 0 < truth]
    notes = [f"\nAbsent, left out of the means: {', '.join(absent)}.\n"] if absent else []
    if never:
        lacking = set(never) <= _NOT_IN_SYNTHIA and len(result["means"]) > 1
        advice = ": SYNTHIA lacks these, so mIoU16 and mIoU13 are what a network trained on it is reported by" if lacking else ""
        notes.append(f"\nNever answered, so 0 in the means that hold them: {', '.join(never)}{advice}.\n")
    return notes


def percent(value: float | None) -> str:
    """A share as percent with one decimal, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def confusion_picture(confusion: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """The confusion matrix, each row divided by its sum: truth downwards, answers to the right, the share in percent in each cell."""
    cell, count = 34, len(classes)
    font = ImageFont.load_default(size=12)
    left = 10 + max(int(font.getlength(name)) for name in classes)
    picture = Image.new("RGB", (left + cell * count + 10, left + cell * count + 10), "white")
    draw = ImageDraw.Draw(picture)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for row, name in enumerate(classes):
        top = left + row * cell
        draw.text((left - 5, top + cell // 2), name, "black", font, anchor="rm")
        label = Image.new("RGB", (left, cell), "white")
        ImageDraw.Draw(label).text((5, cell // 2), name, "black", font, anchor="lm")
        picture.paste(label.rotate(90, expand=True), (left + row * cell, 0))
        for column in range(count):
            share = float(shares[row, column])
            shade = tuple(round(255 + share * (dark - 255)) for dark in (20, 70, 140))
            x = left + column * cell
            draw.rectangle((x, top, x + cell - 2, top + cell - 2), fill=shade)
            if share >= 0.005:
                draw.text((x + cell // 2, top + cell // 2), f"{100 * share:.0f}", "white" if share > 0.5 else "black", font, anchor="mm")
    return picture


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
