"""The numbers of a report: summary, IoU per class, settings. Every function returns HTML."""

import html
import math

import numpy as np

from segjax.verbs.report_read import Run, Score, Stage

E = html.escape


def stage_names(runs: list[Run]) -> list[str]:
    """Stage names in the order of the runs, each once."""
    return list(dict.fromkeys(stage.name for run in runs for stage in run.stages))


def dataset_names(runs: list[Run]) -> list[str]:
    """Data sets that any stage was scored on, each once."""
    return list(dict.fromkeys(name for run in runs for stage in run.stages for name in stage.scores))


def scores(runs: list[Run], stage: str, dataset: str) -> list[Score | None]:
    """One entry a run, None where that run has no such score."""
    return [next((s.scores.get(dataset) for s in run.stages if s.name == stage), None) for run in runs]


def spread(values: list[float]) -> float:
    """Sample standard deviation over runs (n - 1); nan for one run."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def percent(value: float, signed: bool = False) -> str:
    """A fraction as points with one decimal: 0.4601 -> 46.0; a dash for nan."""
    if not math.isfinite(value):
        return "–"
    if signed and abs(value) < 0.0005:
        return "0.0"
    return f"{100 * value:+.1f}".replace("-", "−") if signed else f"{100 * value:.1f}"


def _with_spread(values: list[float]) -> str:
    if not values:
        return "–"
    mean = percent(float(np.mean(values)))
    return mean if len(values) < 2 else f'{mean}<span class="pm"> ± {percent(spread(values))}</span>'


def _gain(before: list[Score | None], after: list[Score | None]) -> list[float]:
    """mIoU differences of the runs that have both."""
    return [b.miou - a.miou for a, b in zip(before, after, strict=True) if a and b]


def _delta(gains: list[float], note: str = "") -> str:
    if not gains:
        return ""
    mean = float(np.mean(gains))
    kind = "up" if mean > 0.0005 else "down" if mean < -0.0005 else "same"
    wins = f", better in {sum(g > 0 for g in gains)} of {len(gains)} runs" if len(gains) > 1 else ""
    return f'<span class="delta {kind}" title="{E(note + wins)}">{percent(mean, signed=True)}</span>'


def tiles(runs: list[Run]) -> str:
    """One tile a data set: the last stage's mIoU and its gain over the first."""
    names = stage_names(runs)
    parts = []
    for dataset in dataset_names(runs):
        scored = [name for name in names if any(scores(runs, name, dataset))]
        first, last = scores(runs, scored[0], dataset), scores(runs, scored[-1], dataset)
        gains = _gain(first, last) if len(scored) > 1 else []
        foot = f"{E(scored[-1])} against {E(scored[0])}" if gains else E(scored[-1])
        if len(gains) > 1:
            foot += f" · better in {sum(g > 0 for g in gains)} of {len(gains)} runs"
        value = _with_spread([s.miou for s in last if s])
        foot = f"{E(next(s for s in last if s).headline)} %, {foot}"
        parts.append(f'<div class="tile"><h3>{E(dataset)}</h3><p class="big">{value}{_delta(gains)}</p><p class="foot">{foot}</p></div>')
    return f'<div class="tiles">{"".join(parts)}</div>' if parts else ""


def summary(runs: list[Run]) -> str:
    """mIoU of every stage on every data set, the best of a column in bold, the difference from the first stage beside it."""
    datasets, names = dataset_names(runs), stage_names(runs)
    if not datasets:
        return '<p class="empty">No score yet: run <code>segjax evaluate</code>, or wait for the first evaluation.</p>'
    found = {(n, d): [s.miou for s in scores(runs, n, d) if s] for n in names for d in datasets}
    best = {d: max((float(np.mean(v)) for n in names if (v := found[n, d])), default=math.nan) for d in datasets}
    head = "".join(f"<th>{E(d)}<small>{_counts(runs, d)}</small></th>" for d in datasets)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for dataset in datasets:
            values = found[name, dataset]
            strong = ' class="best"' if values and len(names) > 1 and math.isclose(float(np.mean(values)), best[dataset]) else ""
            hover = E(", ".join(f"{run.name}: {percent(s.miou)}" for run, s in zip(runs, scores(runs, name, dataset), strict=True) if s))
            delta = _delta(_gain(scores(runs, names[0], dataset), scores(runs, name, dataset)), f"against {names[0]}") if i else ""
            cells.append(f'<td{strong} title="{hover}">{_with_spread(values)} {delta}</td>')
        rows.append(f'<tr><th scope="row">{E(name)}</th>{"".join(cells)}</tr>')
    return table("summary", f"<th>mIoU %</th>{head}", rows)


def _counts(runs: list[Run], dataset: str) -> str:
    score = next(s for run in runs for stage in run.stages if (s := stage.scores.get(dataset)))
    seen = int(np.isfinite(score.iou).sum())
    images = f"{score.headline}, {score.images} images, " if score.images else f"{score.headline}, "
    return f"{images}{seen} of {len(score.classes)} classes present" if seen < len(score.classes) else f"{images}{seen} classes"


def class_tables(runs: list[Run]) -> str:
    """IoU of every class, one table a data set, one column a stage, a bar in every cell; the last column is last minus first stage."""
    parts = []
    for dataset in dataset_names(runs):
        names = [n for n in stage_names(runs) if any(scores(runs, n, dataset))]
        sample = next(s for s in scores(runs, names[0], dataset) if s)
        arrays = {n: np.stack([s.iou for s in scores(runs, n, dataset) if s and s.classes == sample.classes]) for n in names}
        head = "".join(f"<th>{E(n)}</th>" for n in names) + ("<th>gain</th>" if len(names) > 1 else "")
        rows = [_class_row(sample, k, [arrays[n][:, k] for n in names]) for k in range(len(sample.classes))]
        parts.append(f"<article><h3>{E(dataset)}</h3>{table('classes', f'<th>IoU %</th>{head}', rows)}</article>")
    return "".join(parts)


def _class_row(score: Score, k: int, columns: list[np.ndarray]) -> str:
    cells, means = [], []
    for values in columns:
        present = values[np.isfinite(values)]
        mean = float(present.mean()) if len(present) else math.nan
        means.append(mean)
        if not len(present):
            cells.append('<td class="absent" title="no pixel of this class">–</td>')
            continue
        hover = f' title="± {percent(spread(list(present)))} over {len(present)} runs"' if len(present) > 1 else ""
        cells.append(f'<td class="bar" style="--v:{100 * mean:.1f}%"{hover}><span>{percent(mean)}</span></td>')
    gain = ""
    if len(columns) > 1:
        value = means[-1] - means[0]
        gain = f"<td>{_delta([value])}</td>" if math.isfinite(value) else '<td class="absent">–</td>'
    return f'<tr><th scope="row">{chip(score.palette[k])}{E(score.classes[k])}</th>{"".join(cells)}{gain}</tr>'


def table(kind: str, head: str, rows: list[str]) -> str:
    """A table of the page that scrolls when it is wide. kind: its class; head: cells; rows: whole rows."""
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def chip(colour: tuple[int, int, int]) -> str:
    """A small square in a class's colour."""
    return f'<i class="chip" style="background:rgb({colour[0]},{colour[1]},{colour[2]})"></i>'


def legend(runs: list[Run]) -> str:
    """Colour and name of every class, once for every distinct list of classes."""
    seen = {s.classes: s for run in runs for stage in run.stages for s in stage.scores.values()}
    rows = ("".join(f"<li>{chip(c)}{E(n)}</li>" for n, c in zip(s.classes, s.palette, strict=True)) for s in seen.values())
    return "".join(f'<ul class="legend">{row}<li>{chip((0, 0, 0))}not labelled</li></ul>' for row in rows)


def flatten(tree, prefix: str = "") -> dict[str, str]:
    """A nested config as dotted keys -> short text."""
    if isinstance(tree, dict) and tree:
        return {k: v for name, value in tree.items() for k, v in flatten(value, f"{prefix}.{name}" if prefix else str(name)).items()}
    return {prefix: str(tree)}


def settings(runs: list[Run]) -> str:
    """What differs between the stages of the first run, then what differs between runs, then every setting in full."""
    parts = [_difference("Between the stages", {s.name: s.config for s in runs[0].stages})]
    if len(runs) > 1:
        parts.append(_difference("Between the runs", {run.name: {s.name: s.config for s in run.stages} for run in runs}))
    parts += [_full(stage) for stage in runs[0].stages if stage.config]
    return "".join(parts)


def _difference(title: str, configs: dict[str, dict]) -> str:
    flat = {name: flatten(config) if config else {} for name, config in configs.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    differing = [key for key in keys if len({values.get(key) for values in flat.values()}) > 1]
    if len(flat) < 2 or not differing:
        return ""
    head = "".join(f"<th>{E(name)}</th>" for name in flat)
    rows = [
        f'<tr><th scope="row"><code>{E(key)}</code></th>'
        + "".join(f"<td><code>{E(v.get(key, '–'))}</code></td>" for v in flat.values())
        + "</tr>"
        for key in differing
    ]
    return f"<h3>{title}</h3>{table('settings', f'<th></th>{head}', rows)}"


def _full(stage: Stage) -> str:
    rows = [f"<tr><th><code>{E(k)}</code></th><td><code>{E(v)}</code></td></tr>" for k, v in flatten(stage.config).items()]
    return f"<details><summary>Every setting of {E(stage.name)}</summary>{table('settings', '', rows)}</details>"
