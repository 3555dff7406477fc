"""How rules fare that keep a part of pseudo-labels, side by side: of each class the share that is kept, and how much of that is right."""

import html
import math

import numpy as np

from segjax.verbs.report_read import Stage
from segjax.verbs.report_svg import SERIES_COLOURS, ticks

E = html.escape
BAR, GAP, LEFT, PANEL, BETWEEN, TOP, BOTTOM = 9, 9, 96, 300, 28, 24, 24
PANELS = (("kept", "kept, % of the class"), ("right", "right, % of what is kept; mark: of all, before the rule"))
NOTE = '<p class="note">What each rule keeps of the same labels, and how right it is by the held labels; "all" is over all pixels.</p>'
Row = dict[str, float | None]


def chart(found: dict[str, list[Stage]]) -> str:
    """Bars of every stage that drops pixels and has a truth, means over the runs. "" where fewer than two stages do."""
    found = {name: stages for name, stages in found.items() if all(_selects(stage) for stage in stages)}
    if len(found) < 2:
        return ""
    classes = next(iter(found.values()))[0].labels["classes"]
    rows = ["all", *classes]
    values = {name: [_mean([_row(stage, index - 1) for stage in stages]) for index in range(len(rows))] for name, stages in found.items()}
    colours = {name: n % SERIES_COLOURS + 1 for n, name in enumerate(found)}
    height = len(found) * BAR + GAP
    parts = []
    for number, (key, title) in enumerate(PANELS):
        left = LEFT + number * (PANEL + BETWEEN)
        parts += _axis(title, left, TOP + height * len(rows))
        for index, label in enumerate(rows):
            for n, name in enumerate(found):
                parts += _bar(values[name][index], key, f"{label}, {name}", colours[name], left, TOP + height * index + BAR * n)
    for index, label in enumerate(rows):
        middle = TOP + height * index + (height - GAP) / 2 + 4
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{E(label)}</text>')
    width, tall = LEFT + 2 * PANEL + BETWEEN + 40, TOP + height * len(rows) + BOTTOM
    keys = "".join(f'<li><i class="chip" style="background:var(--s{colours[name]})"></i>{E(name)}</li>' for name in found)
    label = "share of each class that every rule keeps, and how much of that is right"
    svg = f'<svg viewBox="0 0 {width} {tall}" style="max-width:{1.3 * width:.0f}px" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<h3>Which pixels a rule keeps</h3>{NOTE}<ul class="legend">{keys}</ul><figure class="selection">{svg}</figure>'


def _selects(stage: Stage) -> bool:
    return "precision" in stage.labels and stage.labels["rule"] != "none"


def _row(stage: Stage, index: int) -> Row:
    """Shares of one class, or with index -1 of all pixels."""
    labels = stage.labels
    if index >= 0:
        return {"kept": labels["kept"][index], "right": labels["precision"]["kept"][index], "before": labels["precision"]["all"][index]}
    every = [score for name, score in stage.scores.items() if name.startswith("pseudo-labels-all-")]
    passed = [score for name, score in stage.scores.items() if name.startswith("pseudo-labels-") and score not in every]
    return {"kept": labels["kept_pixels"], "right": _right(passed), "before": _right(every)}


def _right(scores: list) -> float | None:
    """The share of pixels with an answer and a truth that are right."""
    if not scores or scores[0].confusion is None or not scores[0].confusion.sum():
        return None
    return float(np.trace(scores[0].confusion) / scores[0].confusion.sum())


def _mean(rows: list[Row]) -> Row:
    """Of every value over the runs that have it."""
    known = {key: [value for row in rows if (value := row[key]) is not None] for key in rows[0]}
    return {key: math.fsum(values) / len(values) if values else None for key, values in known.items()}


def _axis(title: str, left: int, bottom: int) -> list[str]:
    parts = [f'<text class="tick" x="{left}" y="14">{title}</text>']
    for tick in ticks(0, 100, 5):
        x = left + PANEL * tick / 100
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 4}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    return parts


def _bar(row: Row, key: str, label: str, colour: int, left: int, top: int) -> list[str]:
    if (value := row[key]) is None:
        return []
    before = row["before"] if key == "right" else None
    text = f"{label}: {100 * value:.1f} % {key}" + (f", {100 * before:.1f} % before the rule" if before is not None else "")
    place = f'x="{left}" y="{top}" width="{PANEL * value:.1f}" height="{BAR - 1}"'
    parts = [f'<rect style="fill:var(--s{colour})" rx="1.5" {place}><title>{E(text)}</title></rect>']
    if before is not None:
        parts.append(f'<path class="mark" d="M{left + PANEL * before:.1f} {top - 1}V{top + BAR}"/>')
    return parts
