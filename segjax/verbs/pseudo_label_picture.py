"""The picture of a pseudo-label stage: image, label and confidence of some images, and each class's confidences with its threshold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data import label_spaces

STRIPS = 4
"""Evenly spaced images that are shown."""

_WIDE = 320  # pixels of each of the three parts of a strip
_ROW, _BAR = 26, 4  # height of a class's row, width of a bar
_TITLE = "confidence of the pixels of each class, 0 to 1; red: threshold"
_TITLES = {"consensus": "the nearest centroid says the same (right) or another class (left)"}
_RAMP = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
"""Stops of matplotlib's viridis: brightness rises with the value, in every kind of colour vision."""


def shown(count: int) -> set[int]:
    """Which of so many images are shown."""
    return set(np.linspace(0, count - 1, STRIPS).round().astype(int).tolist())


def strip(image: np.ndarray, label: np.ndarray, confidence: np.ndarray, space: label_spaces.LabelSpace) -> Image.Image:
    """Image, label in the palette's colours (dropped pixels black) and confidence in [0,1], dark to bright, side by side and small."""
    size = _WIDE, max(1, round(image.shape[0] * _WIDE / image.shape[1]))
    parts = [
        Image.fromarray(image).resize(size, Image.Resampling.BILINEAR),
        Image.fromarray(space.colorize(label)).resize(size, Image.Resampling.NEAREST),
        Image.fromarray(_ramp(confidence)).resize(size, Image.Resampling.BILINEAR),
    ]
    joined = Image.new("RGB", (3 * _WIDE, size[1]))
    for column, part in enumerate(parts):
        joined.paste(part, (column * _WIDE, 0))
    return joined


def _ramp(values: np.ndarray) -> np.ndarray:
    place = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(values, place, _RAMP[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def picture(strips: Sequence[Image.Image], summary: Mapping[str, Any]) -> Image.Image:
    """The strips under each other, then the histograms. summary: what pseudo.json holds."""
    charts = _charts(summary)
    parts = [*strips, charts]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height + 4 for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + 4
    return whole


def _charts(summary: Mapping[str, Any]) -> Image.Image:
    """One row a class: how its pixels' confidences are spread from 0 to 1 (the tallest bar fills the row), threshold, share kept."""
    font, names = ImageFont.load_default(size=12), summary["classes"]
    left = 20 + max(int(font.getlength(name)) for name in names)
    bins = len(summary["histogram"][0])
    chart = Image.new("RGB", (left + _BAR * bins + 330, _ROW * (len(names) + 1) + 8), "white")
    draw = ImageDraw.Draw(chart)
    draw.text((left, 6), _TITLES.get(summary["rule"], _TITLE), "black", font)
    for row, (name, counts) in enumerate(zip(names, summary["histogram"], strict=True)):
        base = _ROW * (row + 2) - 4
        draw.text((left - 8, base - _ROW // 2), name, "black", font, anchor="rm")
        draw.line((left, base, left + _BAR * bins, base), fill=(200, 200, 200))
        for column, count in enumerate(counts):
            if count:
                x, height = left + column * _BAR, max(1, round((_ROW - 6) * count / max(counts)))
                draw.rectangle((x, base - height, x + _BAR - 2, base - 1), fill=tuple(summary["palette"][row]))
        if any(counts) and summary["rule"] not in _TITLES:
            threshold = left + summary["thresholds"][row] * _BAR * bins
            draw.line((threshold, base - _ROW + 6, threshold, base), fill=(220, 40, 40), width=2)
        draw.text((left + _BAR * bins + 10, base - _ROW // 2), _note(summary, row), "black", font, anchor="lm")
    return chart


def _note(summary: Mapping[str, Any], row: int) -> str:
    if not any(summary["histogram"][row]):
        return "never predicted"
    share, precision = summary["kept"][row], (summary.get("precision") or {}).get("kept", [None] * (row + 1))[row]
    right = f", {100 * precision:.1f} % of those right" if precision is not None else ""
    return f"{100 * summary['predicted'][row]:.2f} % of pixels, {100 * share:.1f} % kept{right}"
