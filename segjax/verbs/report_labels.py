"""The pseudo-labels of a report: how much of each class every stage kept, how right that is, the rules side by side, their pictures."""

import html
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from segjax.verbs import report_pictures, report_selection, report_tables
from segjax.verbs.report_read import Run, Stage

E = html.escape
NOTE = (
    '<p class="note">Of each class that the networks predicted: its share of all pixels, the share of it that passed the rule and was '
    "kept, and, where the images have labels, how much of it is right, before the rule and of what was kept.</p>"
)
Pick = Callable[[dict[str, Any]], list[float | None]]
COLUMNS: dict[str, Pick] = {
    "predicted": lambda labels: labels["predicted"],
    "kept": lambda labels: labels["kept"],
    "right": lambda labels: labels["precision"]["all"],
    "right of kept": lambda labels: labels["precision"]["kept"],
}


def labels(runs: list[Run]) -> str:
    """A table and a chart of the rules for every list of classes (means over the runs), then the first run's pictures. "" for none."""
    found = {name: _of(runs, name) for name in report_tables.stage_names(runs)}
    found = {name: stages for name, stages in found.items() if stages}
    spaces = dict.fromkeys(tuple(stages[0].labels["classes"]) for stages in found.values())
    alike = [{name: stages for name, stages in found.items() if _classes(stages) == space} for space in spaces]
    pictures = [
        report_pictures.whole(path, stages[0].name) for stages in found.values() if (path := stages[0].folder / "pseudo.png").is_file()
    ]
    return NOTE + "".join(_table(part) + report_selection.chart(part) for part in alike) + "".join(pictures) if found else ""


def _of(runs: list[Run], name: str) -> list[Stage]:
    return [stage for run in runs for stage in run.stages if stage.name == name and stage.labels]


def _classes(stages: list[Stage]) -> tuple[str, ...]:
    return tuple(stages[0].labels["classes"])


def _table(found: dict[str, list[Stage]]) -> str:
    columns = {name: [key for key in COLUMNS if "precision" in stages[0].labels or "right" not in key] for name, stages in found.items()}
    groups = "".join(f'<th colspan="{len(columns[name])}">{E(name)}<small>{_about(stages)}</small></th>' for name, stages in found.items())
    names = "".join(f"<th>{E(key)} %</th>" for name in found for key in columns[name])
    sample = next(iter(found.values()))[0].labels
    rows = []
    for index, label in enumerate(sample["classes"]):
        cells = [_cell([COLUMNS[key](stage.labels)[index] for stage in stages]) for name, stages in found.items() for key in columns[name]]
        colour = tuple(sample["palette"][index])
        rows.append(f'<tr><th scope="row">{report_tables.chip(colour)}{E(label)}</th>{"".join(cells)}</tr>')
    return report_tables.table("labels", f"<th></th>{groups}</tr><tr><th></th>{names}", rows)


def _about(stages: list[Stage]) -> str:
    """Rule, images, and the share of all pixels that was kept."""
    first = stages[0].labels
    kept = float(np.mean([stage.labels["kept_pixels"] for stage in stages]))
    rule = "every pixel" if first["rule"] == "none" else first["rule"]
    rule += f" {first['share']:g}, cap {first['cap']:g}" if "share" in first else ""
    return E(f"{first['images']} images, {rule}: {report_tables.percent(kept)} % of pixels")


def _cell(values: list[float | None]) -> str:
    """The mean over the runs that have a value."""
    known = [value for value in values if value is not None]
    if not known:
        return '<td class="absent">–</td>'
    hover = f' title="± {report_tables.percent(report_tables.spread(known))} over {len(known)} runs"' if len(known) > 1 else ""
    mean = math.fsum(known) / len(known)
    return f"<td{hover}>{report_tables.percent(mean)}</td>"
