"""One self-contained HTML page of a run, or of several side by side: curves, IoU, confusion, pictures.

What is read (nothing else, so the page can be made on another machine, of a run that is still going):

    DIR/NN-STAGE/                      one folder a stage as `segjax run` leaves it; or DIR itself is one stage as `segjax train` leaves it
      config.json                      the resolved config of the stage
      run.json                         {"command", "started", "versions": {name: version}, "devices", "mesh", "git" or "commit"}; any subset
      metrics.jsonl                    {"step": 100, "loss/ce": 1.23, "images_per_s": ...} lines; a half-written last line is skipped
      done.json                        its presence marks the stage as finished
      pseudo.json, pseudo.png          of a stage that made pseudo-labels, as `segjax pseudo-label` leaves them
      eval/DATASET-SPLIT.json          the newest score, as `segjax evaluate` writes it:
          {"dataset": "dusk", "split": "val", "step": 500, "images": 62, "miou": 0.39, "classes": ["sky", ...], "palette": [[r,g,b], ...],
           "iou": [0.8, null, ...] (null = class absent), "confusion": [[...], ...] (rows = truth); optional "headline": "mIoU16" and
           "misses": [...] (pixels of each class that got an answer outside the classes)}
      eval/DATASET-SPLIT/samples/      up to N=6 evenly spaced images of that data set, the same ones for every stage:
          NAME.image.jpg               the photograph at evaluation size
          NAME.truth.png               the label in the palette's colours, ignored pixels black (absent when there is no label)
          NAME.prediction.png          the prediction in the palette's colours

Several DIRs are taken as repetitions (seeds) of one experiment: equal stage names are put side by side as mean +- sample standard
deviation, gains are paired by run, curves of all runs are drawn, confusion matrices are summed, pictures are the first run's.
"""

import argparse
import html
import os
import pathlib

import numpy as np

from segjax.errors import ConfigError
from segjax.verbs import report_header, report_labels, report_pictures, report_svg, report_tables
from segjax.verbs.report_read import Run, read_run

E = html.escape
TEMPLATES = pathlib.Path(__file__).parent / "templates"
MOST_CHARTS = 16
CHANGES = ("better: right now, wrong in the first stage", "worse: wrong now, right in the first stage", "right in both", "wrong in both")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax report`."""
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directory; several are put side by side as seeds")
    parser.add_argument("--output", default="", metavar="FILE", help="the page (default: report.html in the first DIR)")
    parser.add_argument("--title", default="", help="heading of the page (default: the config's name)")


def run(args: argparse.Namespace) -> int:
    """Writes the page and says where. DataError for a directory that is no run, ConfigError for an output that cannot be written."""
    folders = [pathlib.Path(d) for d in args.directories]
    output = pathlib.Path(args.output) if args.output else folders[0] / "report.html"
    write_report(folders, output, title=args.title)
    print(f"{output}  ({output.stat().st_size / 1e6:.1f} MB; open it in a browser)")
    return 0


def write_report(folders: list[pathlib.Path], output: pathlib.Path, *, title: str = "") -> pathlib.Path:
    """Reads the run directories and writes one HTML file, whole or not at all. Returns `output`."""
    runs = [read_run(pathlib.Path(folder)) for folder in folders]
    page = render(runs, title=title)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}): pass --output=FILE in a folder that you may write") from None
    return output


def render(runs: list[Run], *, title: str = "") -> str:
    """The page as a string: no script, no network, both colour schemes."""
    name = title or str(runs[0].stages[0].config.get("name") or runs[0].name)
    sections = [
        ("summary", "Summary", report_tables.tiles(runs) + report_tables.summary(runs)),
        ("pictures", "Before and after", pictures(runs)),
        ("classes", "IoU per class", report_tables.class_tables(runs)),
        ("labels", "Pseudo-labels", report_labels.labels(runs)),
        ("curves", "Curves", curves(runs)),
        ("confusion", "Confusion", confusions(runs)),
        ("settings", "Settings", report_tables.settings(runs)),
    ]
    sections = [(key, head, body) for key, head, body in sections if body]
    links = "".join(f'<a href="#{key}">{head}</a>' for key, head, _ in sections)
    bodies = "".join(f'<section id="{key}"><h2>{head}</h2>{body}</section>' for key, head, body in sections)
    page = (TEMPLATES / "report.html").read_text()
    style = (TEMPLATES / "report.css").read_text()
    for mark, text in (
        ("STYLE", style),
        ("TITLE", E(name)),
        ("HEADER", report_header.header(runs)),
        ("LINKS", links),
        ("SECTIONS", bodies),
    ):
        page = page.replace(f"<!--{mark}-->", text)
    return page


def pictures(runs: list[Run]) -> str:
    """The first run's strips under a legend of the classes."""
    strips = report_pictures.strips(runs[0])
    marks = zip(
        (report_pictures.BETTER, report_pictures.WORSE, report_pictures.RIGHT_BOTH, report_pictures.WRONG_BOTH), CHANGES, strict=True
    )
    compared = "".join(f"<li>{report_tables.chip(colour)}{text}</li>" for colour, text in marks) if "better, worse" in strips else ""
    return report_tables.legend(runs) + (f'<ul class="legend">{compared}</ul>' if compared else "") + strips if strips else ""


def curves(runs: list[Run]) -> str:
    """One chart a metric, one line a stage and run; losses first, then scores, then the rest."""
    names = [n for n in report_tables.stage_names(runs) if any(s.name == n and s.metrics for r in runs for s in r.stages)]
    colour = {name: i % report_svg.SERIES_COLOURS + 1 for i, name in enumerate(names)}
    lines: dict[str, list[report_svg.Series]] = {}
    for run in runs:
        for stage in run.stages:
            label = stage.name if len(runs) == 1 else f"{stage.name}, {run.name}"
            for key, (steps, values) in stage.metrics.items():
                lines.setdefault(key, []).append(report_svg.Series(label, colour[stage.name], steps, values))
    rank = lambda key: (0 if key.startswith("loss") else 1 if "iou" in key.lower() else 2, key)
    charts = [report_svg.line_chart(key, lines[key]) for key in sorted(lines, key=rank)]
    keys = "".join(f'<li><i class="chip" style="background:var(--s{colour[n]})"></i>{E(n)}</li>' for n in names)
    if not charts:
        return ""
    rest = (
        f'<details><summary>{len(charts) - MOST_CHARTS} more</summary><div class="charts">{"".join(charts[MOST_CHARTS:])}</div></details>'
    )
    shown = f'<ul class="legend">{keys}</ul><div class="charts">{"".join(charts[:MOST_CHARTS])}</div>'
    return shown + (rest if len(charts) > MOST_CHARTS else "")


def confusions(runs: list[Run]) -> str:
    """A matrix for every stage and data set, summed over the runs."""
    parts = []
    for dataset in report_tables.dataset_names(runs):
        figures = []
        for name in report_tables.stage_names(runs):
            found = [s for s in report_tables.scores(runs, name, dataset) if s and s.confusion is not None]
            if found:
                same = [s for s in found if s.classes == found[0].classes]
                total, misses = (np.sum([getattr(s, part) for s in same], axis=0) for part in ("confusion", "misses"))
                classes = found[0].classes
                figures.append(report_svg.confusion_matrix(name, classes, total, misses))
        if figures:
            wide = " wide" if len(classes) > 12 else ""
            parts.append(f'<article><h3>{E(dataset)}</h3><div class="confusions{wide}">{"".join(figures)}</div></article>')
    note = (
        '<p class="note">Rows are the truth, columns the prediction; a cell is its share of the row in per cent. Hover for the pixels.</p>'
    )
    return note + "".join(parts) if parts else ""
