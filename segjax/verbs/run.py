"""Run every stage of a config in order: finished stages are skipped, interrupted ones go on. Ends with a table and report.html.

Each stage gets a folder DIR/NN-name/ as its verb leaves it (train, pseudo-label); results.json and results.md hold the table.
`rows` of a config, {"name": (stage, stage, ...)}, are rows of the table and of the report that average over stages: repetitions with
another target image, say. They are kept in rows.json.
"""

import argparse
import pathlib

import jax

from segjax.errors import ConfigError
from segjax.runtime import log
from segjax.verbs import build, folder, report, stages, startup, train
from segjax.verbs.report_read import ROWS


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="receives one folder a stage")
    train.add_on_change(parser)


def run(args: argparse.Namespace) -> int:
    """Makes the stages of `config.order`, each by its verb.

    Whatever a stage raises (75 when preempted) ends the run; the same command goes on there.
    """
    startup.begin(args)
    names = build.stage_names(args.config)
    verbs = {name: stages.module(args.config, name) for name in names}
    for name, verb in verbs.items():
        verb.check_stage(args.config, name)  # a mistake in the last stage should not wait for the first to finish
    rows = _rows(args.config, names)
    places = {name: args.workdir / f"{number:02d}-{name}" for number, name in enumerate(names, 1)}
    done = {}
    for number, (name, verb) in enumerate(verbs.items(), 1):
        log.say(f"[{number}/{len(places)}] {name}")
        done[name] = verb.run_stage(args.config, name, places[name], places, args.on_change)
    if jax.process_index() == 0:
        _conclude(args.workdir, done, rows)
    return 0


def _rows(config, names: tuple[str, ...]) -> dict[str, list[str]]:
    """The config's rows. ConfigError: one of a stage that is not run, or with a stage's name."""
    rows = {row: list(stages) for row, stages in build.plain(config.get("rows", {})).items()}
    for row, members in rows.items():
        if row in names or not members or set(members) - set(names):
            raise ConfigError(f"config.rows.{row}={members!r}: expected stages of {', '.join(names)}, under a name that none of them has")
    return rows


def _means(done: dict, rows: dict[str, list[str]]) -> dict:
    """A row for each of `rows`, as done.json has its scores: the mean over its stages, of data sets that all of them are scored on."""
    found = {}
    for row, members in rows.items():
        parts = [done[name]["scores"] for name in members]
        shared = [dataset for dataset in parts[0] if all(dataset in part for part in parts)]
        scores = {}
        for dataset in shared:
            values = [part[dataset]["miou"] for part in parts]
            mean = None if None in values else sum(values) / len(values)
            scores[dataset] = {"headline": parts[0][dataset]["headline"], "miou": mean, "stages": members}
        found[f"{row}, mean of {len(members)}"] = {"scores": scores}
    return found


def _conclude(workdir: pathlib.Path, done: dict, rows: dict[str, list[str]]) -> None:
    if rows:
        folder.write_json(workdir / ROWS, rows)
    done = done | _means(done, rows)
    table = train.summary(done)
    folder.write_json(workdir / "results.json", {name: part["scores"] for name, part in done.items()})
    try:
        (workdir / "results.md").write_text(table + "\n")
    except OSError as error:
        raise ConfigError(f"--workdir={workdir}: cannot be written ({error.strerror}): choose a folder with write access") from None
    page = report.write_report([workdir], workdir / "report.html")
    print(f"\n{table}\n\n{page}", flush=True)
