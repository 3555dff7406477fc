"""The roofline of a run as SVG, by hand: what each workload reached over its operations a byte, under the ceilings that were measured."""

import html
import math
import pathlib
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 70, 150, 20, 50
COLOURS = ("#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6")


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Draws measured rows into `path`; both axes logarithmic."""
    points = [(each["workload"], *_place(each)) for each in rows]
    roofs = {dtype: each["ceilings"] for each in rows for dtype in [each["ceilings"]["matmul_dtype"]]}
    xs = [x for _, x, _ in points] + [c["matmul_flops"] / c["copy_bytes"] for c in roofs.values()]
    ys = [y for _, _, y in points] + [c["matmul_flops"] for c in roofs.values()]
    x_low, x_high, y_low, y_high = _decade(min(xs), -1), _decade(max(xs), 1), _decade(min(ys), -1), _decade(max(ys), 1)
    across = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(x) - x_low) / (x_high - x_low)
    down = lambda y: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (math.log10(y) - y_low) / (y_high - y_low)
    parts = [_grid(x_low, x_high, y_low, y_high, across, down)]
    for dtype, ceiling in sorted(roofs.items()):
        ridge, start = ceiling["matmul_flops"] / ceiling["copy_bytes"], max(10.0**x_low, 10.0**y_low / ceiling["copy_bytes"])
        line = [(start, start * ceiling["copy_bytes"]), (ridge, ceiling["matmul_flops"]), (10.0**x_high, ceiling["matmul_flops"])]
        path_text = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path_text}" fill="none" stroke="#555" stroke-width="1.5"/>')
        where = f'x="{WIDTH - RIGHT + 4}" y="{down(ceiling["matmul_flops"]) + 4:.1f}"'
        parts.append(f"<text {where}>{html.escape(dtype)} {_si(ceiling['matmul_flops'])}FLOP/s</text>")
    for number, (name, x, y) in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{across(x) + 8:.1f}" y="{down(y) + 4:.1f}" fill="{colour}">{html.escape(name)}</text>')
    device = html.escape(str(rows[0]["device"]))
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 10}">operations a byte, {device}: the least work of each step over its time</text>')
    style = "<style>text{font:12px sans-serif;fill:#333}</style>"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><rect width="100%" height="100%" fill="#fff"/>{style}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{svg}{''.join(parts)}</svg>\n", encoding="utf-8")


def _place(each: dict[str, Any]) -> tuple[float, float]:
    """(operations a byte, operations a second of one device)."""
    devices = math.prod(each["mesh"].values())
    flops = max(each["flops"]["analytic"], 1.0)
    return flops / max(each["bytes"]["least"], 1.0), flops / (each["ms"]["p50"] / 1e3) / devices


def _grid(x_low: int, x_high: int, y_low: int, y_high: int, across, down) -> str:
    parts = []
    for power in range(x_low, x_high + 1):
        x = across(10.0**power)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{10.0**power:g}</text>')
    for power in range(y_low, y_high + 1):
        y = down(10.0**power)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_si(10.0**power)}</text>')
    return "".join(parts)


def _decade(value: float, side: int) -> int:
    return math.floor(math.log10(value)) if side < 0 else math.ceil(math.log10(value) + 1e-9)


def _si(value: float) -> str:
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {letter}"
    return f"{value:.3g} "
