"""Names every bad file of a data set, the ids found in it, the likely cause and the fix.

    segjax data check --config=configs/camvid_day_dusk.py              every data set of a config, each once
    segjax data check --images=DIR --labels=DIR --label-space=camvid11 folders that no config knows yet
    segjax data check --file-list=train.txt --label-space=camvid11     a text file of "image label" lines

Every image and label is decoded. Exit 0: a training can use the data (hints may remain); 3: it would stop or learn something wrong.
"""

import argparse
from typing import Any

import numpy as np

from segjax.data import check
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE
from segjax.verbs import data_source
from segjax.verbs.progress import progress

SHOWN = 5
"""Files printed of each kind of problem; the rest are counted."""
KINDS = {
    "unpaired_images": "images without a label",
    "unpaired_labels": "labels without an image",
    "unreadable": "unreadable files",
    "size_mismatch": "labels of another size than their image",
    "bad_ids": "labels with ids out of range",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax data check`."""
    data_source.add_source_arguments(parser)
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="look at the first N examples of each data set only")
    parser.add_argument("--threads", type=int, default=8)


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 3 when a run would be wrong. ConfigError for flags that name no data or two kinds of it."""
    if args.limit < 0 or args.threads < 1:
        raise ConfigError(f"data check: --limit={args.limit} --threads={args.threads}: expected 0 or more, and 1 or more")
    wrong = 0
    for source in data_source.sources(args):
        try:
            dataset = data_source.open_source(source, strict=False)
        except DataError as error:
            # One data set that cannot even be listed must not hide what is wrong with the next.
            print(f"\n{source.where}\n  WRONG  {error}", flush=True)
            wrong += 1
            continue
        wrong += bool(report(source.where, dataset, needs_labels=source.needs_labels, limit=args.limit, threads=args.threads))
    print(
        "\nevery data set can be used"
        if not wrong
        else f"\n{wrong} data set{'s' * (wrong > 1)} would make a run stop or learn something wrong"
    )
    return DataError.code if wrong else 0


def report(name: str, dataset: Any, *, needs_labels: bool, limit: int, threads: int) -> list[str]:
    """Checks one data set, prints what was found and returns what would make a run wrong."""
    total = min(limit or len(dataset), len(dataset))
    with progress(f"check {name}", total) as advance:
        findings = check.check(dataset, threads=threads, limit=limit or None, progress=lambda done, total: advance(1))
    print(f"\n{name}\n  {dataset!r}")
    for line in class_lines(findings):
        print(f"  {line}")
    wrong = problems(findings, needs_labels=needs_labels)
    for line in wrong:
        print(f"  WRONG  {line}")
    for line in findings.hints:
        print(f"  hint   {line}")
    if not wrong:
        print(f"  good   {findings.examples} examples")
    return wrong


def problems(findings: check.Findings, *, needs_labels: bool) -> list[str]:
    """One line a problem: the first files of each kind with their likely cause, then what is wrong with the set as a whole."""
    lines = []
    for kind, title in KINDS.items():
        found = getattr(findings, kind)
        names = [entry if isinstance(entry, str) else entry[1] for entry in found]
        lines += [f"{len(found)} {title}: {name}" if not i else name for i, name in enumerate(names[:SHOWN])]
        if len(found) > SHOWN:
            lines.append(f"... and {len(found) - SHOWN} more {title}")
    labelled = int(findings.pixels.sum())
    present = set(np.flatnonzero(findings.pixels).tolist())
    if needs_labels and not labelled and not lines:
        lines.append("no label was read: a training or an evaluation needs them; give `labels`, or a file list with two words a line")
    elif present and present <= {IGNORE}:
        lines.append(
            "every pixel of every label is ignore: the encoding does not fit these files; set `encoding` to what they were written with"
        )
    elif present <= {0, IGNORE} and labelled and findings.label_space.num_classes > 1:
        first = findings.label_space.classes[0]
        lines.append(f"labels hold only {first!r} (0) and ignore (255): these look like binary masks 0/255; write class ids instead")
    return lines


def class_lines(findings: check.Findings) -> list[str]:
    """Share of the labelled pixels and number of images of every class that occurs, the largest first."""
    counts = findings.pixels[: findings.label_space.num_classes]
    if not counts.sum():
        return []
    width = max(map(len, findings.label_space.classes))
    order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
    lines = [
        f"{findings.label_space.classes[k]:<{width}} {100 * counts[k] / counts.sum():6.2f} %  {findings.images_with[k]} images"
        for k in order
    ]
    return lines + [f"{'(ignored)':<{width}} {100 * findings.pixels[IGNORE] / findings.pixels.sum():6.2f} % of all pixels"]
