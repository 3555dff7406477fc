"""Train one stage of a config; the same command again goes on from its last save.

Leaves in DIR: config.json, run.json, checkpoints/, metrics.jsonl, tb/, eval/, weights.safetensors (what `predict` uses) and done.json.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from segjax.data import pipeline, robust
from segjax.data.sampling import count_labels
from segjax.data.stream import Stream
from segjax.errors import ConfigError
from segjax.runtime import log, loop, peers
from segjax.verbs import build, folder, frozen, scores, scoring, stages, startup, variables, words

BROKEN = "broken.jsonl"
"""The records that a run could not read and went on without (`data.broken`), one object a line."""
ON_CHANGE = ("refuse", "continue", "restart")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="the stage's own folder")
    parser.add_argument("--stage", default="", metavar="NAME", help="which of the config's stages (may be left out when there is one)")
    parser.add_argument("--start", type=pathlib.Path, metavar="PATH", help="weights file or earlier stage's folder to start from")
    text = "write an xprof trace of these steps, counted from 0, to DIR/profile (10:13 is steps 10, 11 and 12)"
    parser.add_argument("--profile", default="", metavar="FIRST:LAST", help=text)
    add_on_change(parser)


def add_on_change(parser: argparse.ArgumentParser):
    text = "when DIR was made with other settings: refuse (default), continue with the new ones, or restart (the old DIR is renamed)"
    parser.add_argument("--on-change", choices=ON_CHANGE, default="refuse", help=text)


def run(args: argparse.Namespace) -> int:
    startup.begin(args)
    names = build.stage_names(args.config)
    name = args.stage or (names[0] if len(names) == 1 else "")
    if not name:
        raise ConfigError(f"this config has the stages {', '.join(names)}: pass --stage=NAME, or run them all with `segjax run`")
    places = folder.beside(args.workdir, stages.read_by_text(build.plain(args.config.stages.get(name, {}))))
    options = {"start": _start(args, name), "places": places, "on_change": args.on_change, "profile": _steps(args.profile)}
    done = train_stage(args.config, name, args.workdir, **options)
    if jax.process_index() == 0:
        print(summary({name: done}))
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be built. Reads no data."""
    build.stage(config, name)


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """`train_stage` within a run whose stages have the folders `places`."""
    before = config.stages[name].get("start_from", "")
    return train_stage(config, name, place, start=places[before] / folder.WEIGHTS if before else None, places=places, on_change=on_change)


def train_stage(
    config,
    name: str,
    place: pathlib.Path,
    *,
    start: pathlib.Path | None = None,
    places: Mapping[str, pathlib.Path] | None = None,
    on_change: str = "refuse",
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Trains, scores and exports one stage in the folder `place`; returns what its done.json holds.

    start: weights that replace the config's `model.weights`. places: folders of the stages that the config's values name. profile: steps to
    trace (`loop.train`). A finished stage with the same settings and inputs is left alone. Raises the errors of every part before anything
    is compiled; ConfigError when `place` holds work of other settings or inputs (`on_change`).
    """
    places = places or {}
    stage = build.stage(config, name, places)
    data = build.training_data(stage)
    trials = scoring.trials(stage)
    datasets = [data.source, data.target, *(trial.dataset for trial in trials)]
    inputs = folder.inputs(datasets, start or stage.spec["model"].get("weights", ""))
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    if start is None and (read := words.inputs(stage)):
        inputs["words"] = read
    if weights := frozen.files(stage):
        inputs["frozen"] = frozen.hashes(weights)
    settings = folder.settings(config, name, inputs)
    peers.agree({f"stages.{name}.{key}": repr(value) for key, value in folder.flatten(settings).items()})
    digest = folder.digest(settings)
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is not None and done["digest"] == digest:
        log.say(f"{place}: finished before with the same settings and inputs, nothing to do")
        return done
    mesh = build.make_mesh(stage)
    build.check_batch(stage, mesh)
    folder.prepare(place, settings, mesh, on_change=on_change)
    begin = time.monotonic()
    space = data.source.label_space
    ledger = robust.Ledger(place / BROKEN)
    scorer = scoring.Scorer(stage, space, 0, mesh)
    state = loop.train(
        stage.method,
        batches=functools.partial(_batches, stage, data.streams, place, ledger),
        steps=stage.spec["steps"],
        workdir=place,
        mesh=mesh,
        seed=stage.seed,
        initial_variables=lambda: words.put(stage, variables.initial(stage, space, start), anew=start is None),
        frozen=frozen.load(weights),
        evaluate=functools.partial(_evaluate, scorer, trials),
        host_metrics=ledger.metrics,
        sharding_overrides=build.sharding_overrides(stage),
        profile=profile,
        **{key: stage.spec[key] for key in ("checkpoint_every", "keep", "log_every", "evaluate_every") if key in stage.spec},
    )
    seconds = time.monotonic() - begin
    return _finish(stage, state, scorer, trials, place, ledger, space=space.name, digest=digest, seconds=seconds)


def _batches(stage: build.Stage, streams: list[Stream], place: pathlib.Path, ledger: robust.Ledger, start_step: int):
    arguments = {key: stage.spec["data"][key] for key in build.BATCH_KEYS if key in stage.spec["data"]}
    return pipeline.batches(
        streams,
        batch_size=stage.spec["batch_size"],
        steps=stage.spec["steps"],
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        ledger=ledger,
        count=functools.partial(count_labels, folder=place / "statistics", write=jax.process_index() == 0),
        **arguments,
    )


def _evaluate(scorer: scoring.Scorer, trials: list[scoring.Trial], state: Any, step: int) -> dict[str, float]:
    """Metrics `eval/DATASET/mIoU11` for the loop's log."""
    found = {}
    for trial in trials:
        score = scorer(state, trial)
        found.update({f"eval/{trial.name}/{name}": value for name, value in score.means.items()})
    return found


def _finish(
    stage: build.Stage,
    state: Any,
    scorer: scoring.Scorer,
    trials: list[scoring.Trial],
    place: pathlib.Path,
    ledger: robust.Ledger,
    *,
    space: str,
    digest: str,
    seconds: float,
) -> dict[str, Any]:
    """Scores the last state, writes eval/, weights.safetensors and, last of all, done.json."""
    step = int(state.step)
    results = {}
    first = jax.process_index() == 0
    for trial in trials:
        score = scorer(state, trial, place / "eval" / f"{trial.name}-{trial.split}" / "samples")
        result = scores.as_json(score, step=step, weights=folder.WEIGHTS)
        results[trial.name] = {key: result[key] for key in ("headline", "miou", "means", "images")}
        if first:
            scores.write(place / "eval", score, result)
    done = {"stage": stage.name, "digest": digest, "steps": step, "scores": results, "seconds": round(seconds, 1)}
    if ledger.count:
        done["broken_records"] = ledger.count
        print(f"{ledger.count} records could not be read and others took their place: {place / BROKEN} names them", flush=True)
    parts = {key: json.dumps(stage.spec[key], sort_keys=True) for key in ("model", "method")}
    metadata = {"stage": stage.name, "step": str(step), **parts}
    weights = variables.gather(state)
    if first:
        sha256 = variables.export(place / folder.WEIGHTS, weights, space=space, metadata=metadata)
        folder.write_json(place / folder.DONE, {**done, "weights_sha256": sha256})
    startup.barrier("wrote done.json")
    return done


def summary(done: dict[str, dict[str, Any]]) -> str:
    """One table: a row a stage, a column a data set, in percent."""
    columns = list(dict.fromkeys(name for part in done.values() for name in part["scores"]))
    header = ["stage"]
    for column in columns:
        headline = next(part["scores"][column]["headline"] for part in done.values() if column in part["scores"])
        header.append(f"{column} {headline} %")
    rows = [[name, *(scores.percent(part["scores"].get(column, {}).get("miou")) for column in columns)] for name, part in done.items()]
    return scores.table(header, rows)


def _steps(text: str) -> tuple[int, int] | None:
    """ "10:13" -> (10, 13), "" -> None. ConfigError for anything else."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ConfigError(f"--profile={text}: expected FIRST:LAST with FIRST below LAST, e.g. --profile=10:13")
    return int(first), int(last)


def _start(args: argparse.Namespace, name: str) -> pathlib.Path | None:
    """--start as a weights file; else, for a stage that starts from an earlier one, that stage's folder beside --workdir."""
    if args.start is not None:
        return args.start / folder.WEIGHTS if args.start.is_dir() else args.start
    before = args.config.stages[name].get("start_from", "") if name in args.config.stages else ""
    if not before:
        return None
    place = folder.of_stage(args.workdir.absolute().parent, before)
    if place is None or folder.read_done(place) is None:
        raise ConfigError(f"stage {name} starts from {before}, but no finished {before} lies beside {args.workdir}: pass --start=PATH")
    return place / folder.WEIGHTS
