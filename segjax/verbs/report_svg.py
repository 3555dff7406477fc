"""Inline SVG for `segjax report`: line charts and confusion matrices. Colours are CSS variables, so both themes work."""

import dataclasses
import html
import math

import numpy as np

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 28
MAX_POINTS = 300
MAX_HOVERS = 40
MAX_RAW = 3
SERIES_COLOURS = 6


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: `colour` indexes the page's series colours (1..6)."""

    label: str
    colour: int
    steps: np.ndarray
    values: np.ndarray


def smooth(values: np.ndarray, strength: float = 0.9) -> np.ndarray:
    """Debiased exponential moving average; a non-finite value is left out of the average. float64 [N] -> [N]."""
    out, total, weight = np.empty(len(values)), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = strength * total + (1 - strength) * value, strength * weight + (1 - strength)
        out[i] = total / weight if weight else math.nan
    return out


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers inside [low, high]: 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A short form for an axis or a hover: 0.000250 -> 2.5e-04, 12000 -> 12k."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10000:
        return f"{value / 1000:.3g}k"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def _thin(count: int, limit: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))


def _range(series: list[Series]) -> tuple[float, float, float, float]:
    """Axis limits. The top is the 99.5th percentile of the raw values, so that one spike does not flatten the rest."""
    values = np.concatenate([s.values[np.isfinite(s.values)] for s in series])
    low, high = (float(values.min()), float(np.percentile(values, 99.5))) if len(values) else (0.0, 1.0)
    if 0 < low < 0.35 * high:
        low = 0.0
    if high <= low:
        high = low + (abs(low) or 1.0)
    pad = 0.04 * (high - low)
    first, last = min(float(s.steps[0]) for s in series), max(float(s.steps[-1]) for s in series)
    return first, max(last, first + 1), low if low == 0 else low - pad, high + pad


def line_chart(title: str, series: list[Series]) -> str:
    """One small chart of a metric over steps: smoothed lines over faint raw ones, hover titles on the smoothed values."""
    series = [s for s in series if len(s.steps)]
    first, last, low, high = _range(series)
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * (step - first) / (last - first)
    y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (min(max(value, low), high) - low) / (high - low)
    parts = []
    for tick in ticks(low, high, 4):
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in ticks(first, last, 5):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 9}" text-anchor="middle">{number(tick)}</text>')
    for line in series:
        parts.extend(_line(line, x, y, raw=len(series) <= MAX_RAW))
    label = html.escape(title)
    return _figure("chart", label, f"{label} over steps", WIDTH, HEIGHT, parts)


def _line(line: Series, x, y, raw: bool) -> list[str]:
    """Raw line, smoothed line, and hover targets. A few points (an evaluation now and then) are drawn as they are, with dots."""
    few = len(line.steps) <= 25
    shown = line.values if few else smooth(line.values)
    style = f'style="stroke:var(--s{line.colour})"'
    parts = [] if few or not raw else [f'<path class="raw" {style} d="{_path(line.steps, line.values, x, y)}"/>']
    parts.append(f'<path class="line" {style} d="{_path(line.steps, shown, x, y)}"/>')
    for i in _thin(len(line.steps), MAX_HOVERS):
        if math.isfinite(shown[i]):
            text = html.escape(f"{line.label}, step {line.steps[i]}: {number(float(shown[i]))}")
            place = f'cx="{x(line.steps[i]):.1f}" cy="{y(shown[i]):.1f}"'
            dot = f'<circle style="fill:var(--s{line.colour})" r="2.5" {place}/>' if few else ""
            parts.append(f'<g>{dot}<circle class="hit" r="7" {place}><title>{text}</title></circle></g>')
    return parts


def _path(steps, values, x, y) -> str:
    keep = [i for i in _thin(len(steps), MAX_POINTS) if math.isfinite(values[i])]
    return "M" + "L".join(f"{x(steps[i]):.1f} {y(values[i]):.1f}" for i in keep) if keep else ""


def confusion_matrix(title: str, classes: tuple[str, ...], confusion: np.ndarray, misses: np.ndarray) -> str:
    """Row-normalised heat map: row = truth, column = prediction; each cell's share of its row is in its hover title.

    confusion int [K,K]; misses int [K]: answers outside the classes, a column of its own where there are any.
    """
    left, top = 92, 84
    answers = (*classes, "other") if misses.any() else classes
    confusion = np.concatenate([confusion, misses[:, None]], 1)[:, : len(answers)]
    cell = 20 if len(classes) > 12 else 26
    rows = confusion.sum(1, keepdims=True)
    share = confusion / np.maximum(rows, 1)
    width, height = left + cell * len(answers) + 52, top + cell * len(classes) + 4
    parts = []
    for i, name in enumerate(classes):
        escaped = html.escape(name)
        middle = i * cell + cell / 2 + 4
        faint = "" if rows[i, 0] else " absent"
        parts.append(f'<text class="tick{faint}" x="{left - 6}" y="{top + middle}" text-anchor="end">{escaped}</text>')
    for j, name in enumerate(answers):
        place = f"translate({left + j * cell + cell / 2 + 4} {top - 6}) rotate(-50)"
        parts.append(f'<text class="tick" transform="{place}">{html.escape(name)}</text>')
    for i, truth in enumerate(classes):
        for j, answer in enumerate(answers):
            hover = html.escape(f"{truth} predicted as {answer}: {100 * share[i, j]:.1f} % ({confusion[i, j]:,} pixels)")
            parts.append(_cell(hover, "right" if i == j else "wrong", float(share[i, j]), left + j * cell, top + i * cell, cell))
    label = html.escape(title)
    return _figure("confusion", label, f"confusion matrix, {label}: rows truth, columns prediction", width, height, parts)


def _cell(title: str, kind: str, share: float, left: int, top: int, cell: int) -> str:
    square = f'x="{left + 1}" y="{top + 1}" width="{cell - 2}" height="{cell - 2}" rx="2"'
    shown = f'<rect class="{kind}" fill-opacity="{share:.3f}" {square}/>' if share >= 0.003 else ""
    text = ""
    if share >= 0.1:
        contrast = "ink on" if share > 0.55 else "ink"
        text = f'<text class="{contrast}" x="{left + cell / 2}" y="{top + cell / 2 + 3}" text-anchor="middle">{round(100 * share)}</text>'
    return f'<g>{shown}{text}<rect class="cell" {square}><title>{title}</title></rect></g>'


def _figure(kind: str, caption: str, label: str, width: int, height: int, parts: list[str]) -> str:
    svg = (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{1.3 * width:.0f}px" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
    return f'<figure class="{kind}"><figcaption>{caption}</figcaption>{svg}</figure>'
