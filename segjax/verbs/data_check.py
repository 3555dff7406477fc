"""Names every bad file of a data set, the ids found in it, the likely cause and the fix.

    segjax data check --config=configs/camvid_day_dusk.py              every data set of a config, each once
    segjax data check --dataset=gta5 --root=DIR --split=train          a public data set as downloaded
    segjax data check --images=DIR --labels=DIR --label-space=camvid11 folders that no config knows yet
    segjax data check --file-list=train.txt --label-space=camvid11     a text file of "image label" lines

Every image and label is decoded. Exit 0: a training can use the data (hints may remain); 3: it would stop or learn something wrong.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import time
from typing import Any

import numpy as np

from segjax.data import check
from segjax.data.dataset import Dataset
from segjax.data.faults import KINDS, Fault
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE
from segjax.verbs import data_source
from segjax.verbs.progress import progress

SHOWN = 5
"""Files printed of each kind of problem; the rest are counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax data check`."""
    data_source.add_source_arguments(parser)
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="look at the first N examples of each data set only")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything that was found to FILE, for machines")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 3 when a run would be wrong. ConfigError for flags that name no data or two kinds of it."""
    if args.limit < 0 or args.threads < 0:
        raise ConfigError(f"data check: --limit={args.limit} --threads={args.threads}: expected 0 or more")
    reports = [_check(source, args) for source in data_source.sources(args)]
    wrong = sum(not report["ok"] for report in reports)
    print(
        "\nevery data set can be used"
        if not wrong
        else f"\n{wrong} data set{'s' * (wrong > 1)} would make a run stop or learn something wrong"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"ok": not wrong, "datasets": reports}, indent=2) + "\n", encoding="utf-8")
    return DataError.code if wrong else 0


def _check(source: data_source.Source, args: argparse.Namespace) -> dict[str, Any]:
    """Checks one data set, prints what was found, and returns it for --json."""
    try:
        dataset = data_source.open_source(source, strict=False)
    except DataError as error:
        # One data set that cannot even be listed must not hide what is wrong with the next.
        fault = Fault("unlisted", "", str(error))
        print(f"\n{source.where}\n  WRONG  {error}", flush=True)
        return {"where": source.where, "ok": False, "faults": [dataclasses.asdict(fault)]}
    total = min(args.limit or len(dataset), len(dataset))
    begun, busy = time.monotonic(), time.process_time()
    with progress(f"check {source.where}", total) as advance:
        findings = check.check(dataset, threads=args.threads or None, limit=args.limit or None, progress=lambda done, total: advance(1))
    seconds, busy = time.monotonic() - begun, time.process_time() - busy
    if source.needs_labels and not findings.pixels.any() and findings.ok:
        fix = "give `labels`, or a file list with two words a line"
        findings.faults.append(Fault("set", "", "no label was read", "a training or an evaluation needs them", fix))
    print(f"\n{source.where}\n  {dataset!r}")
    for line in (*class_lines(findings), *fault_lines(findings.wrong, "WRONG"), *fault_lines(findings.hints, "hint ")):
        print(f"  {line}")
    if findings.ok:
        print(f"  good   {findings.examples} examples")
    print(f"  read   {rate(findings.examples, seconds, busy)}")
    return _report(source.where, dataset, findings)


def fault_lines(faults: list[Fault], word: str) -> list[str]:
    """One line a fault; several of a kind stand under their number, and only the first files of each kind are shown."""
    lines = []
    for kind, group in itertools.groupby(faults, key=lambda fault: fault.kind):
        same = list(group)
        if kind == "set" or len(same) == 1:
            lines += [f"{word}  {fault.line}" for fault in same]
            continue
        lines.append(f"{word}  {len(same)} {KINDS[kind]}")
        lines += [f"       {fault.line}" for fault in same[:SHOWN]]
        if len(same) > SHOWN:
            lines.append(f"       ... and {len(same) - SHOWN} more")
    return lines


def rate(examples: int, seconds: float, busy: float) -> str:
    """How fast it went. seconds: of wall time; busy: of processor time, all threads together."""
    each = f", {1000 * busy / examples:.1f} ms of processor time each" if examples else ""
    return f"{examples} examples in {seconds:.1f} s: {examples / max(seconds, 1e-9):.0f} a second{each}"


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


def _report(where: str, dataset: Dataset, findings: check.Findings) -> dict[str, Any]:
    classes = findings.label_space.classes
    return {
        "where": where,
        "dataset": repr(dataset),
        "ok": findings.ok,
        "examples": findings.examples,
        "sizes": {f"{w}x{h}": count for (h, w), count in findings.sizes.most_common()},
        "pixels": {name: int(findings.pixels[k]) for k, name in enumerate(classes)} | {"ignored": int(findings.pixels[IGNORE])},
        "images_with": {name: int(findings.images_with[k]) for k, name in enumerate(classes)},
        "faults": [dataclasses.asdict(fault) for fault in (*findings.wrong, *findings.hints)],
    }
