"""Label an unlabelled data set with the networks of earlier stages."""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from segjax.data import pseudo
from segjax.data.files import read_label
from segjax.errors import ConfigError
from segjax.runtime import mesh as meshes
from segjax.runtime import workdir
from segjax.verbs import build, evaluate, folder, inference, scores, scoring, stages, startup
from segjax.verbs import pseudo_label_work as work
from segjax.verbs.pseudo_label_files import Sums
from segjax.verbs.pseudo_label_network import Labeller, Look, Voter
from segjax.verbs.resolve import nearest
from segjax.weights import safetensors_io

SCORED = "pseudo-labels"
"""The name of their score, the same in every stage, so that a report puts them side by side."""

DEFAULTS: dict[str, Any] = {
    "size": None,
    "style": {},
    "beta": 0.01,
    "variant": "centred",
    "rule": work.NO_RULE,
    "share": 0.66,
    "cap": 0.9,
    "batch_size": 1,
    "mesh": {},
    "evaluate": True,
    "score": "",
}
"""Keys that a stage may leave out, besides those of `inference.Inference`, and what they are then."""
NEEDED = ("verb", "networks", "dataset")


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no data."""
    spec = _values(config, name, {})
    for network in spec["networks"]:
        build.stage(config, network)


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Labels the data set of one stage in the folder `place`; returns what its done.json holds.

    A finished stage with the same settings, data and networks is left alone; one that was stopped goes on with the images that are missing.
    """
    where, spec = f"config.stages.{name}", _values(config, name, places)
    dataset = build.dataset(spec["dataset"], f"{where}.dataset")
    style = build.dataset(spec["style"], f"{where}.style") if spec["style"] else None
    weights = {network: places[network] / folder.WEIGHTS for network in spec["networks"]}
    inputs = {"data": [repr(dataset), repr(style)], "weights": {key: safetensors_io.sha256(path) for key, path in weights.items()}}
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    settings = folder.settings(config, name, inputs)
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is not None and done["digest"] == folder.digest(settings):
        print(f"{place}: finished before with the same settings and inputs, nothing to do", flush=True)
        return done
    mesh = build.call(meshes.make_mesh, spec["mesh"], f"{where}.mesh")
    voters = [_voter(config, network, path) for network, path in weights.items()]
    learned = scoring.learned_by(build.plain(config.stages[spec["networks"][0]])["data"]["source"])
    keys = {field.name: spec[field.name] for field in dataclasses.fields(work.Job) if field.name in spec}
    job = work.Job(**{**keys, "dataset": dataset, "style": style, "truth": spec["evaluate"]})
    trial = scoring.Trial(
        SCORED,
        spec["dataset"].get("split", "train"),
        dataset,
        spec["size"],
        inference.from_spec(spec, f"{where}."),
        scoring.headline(dataset.label_space, spec["score"], learned, where),
    )
    return finish(job, trial, voters, mesh, place, settings, on_change=on_change)


def finish(
    job: work.Job,
    trial: scoring.Trial,
    voters: list[Voter],
    mesh: jax.sharding.Mesh,
    place: pathlib.Path,
    settings: Mapping[str, Any],
    *,
    on_change: str,
) -> dict[str, Any]:
    """Makes labels, pseudo.json, eval/ and, last of all, done.json, which is returned."""
    stale = on_change == "continue" and folder.changes(place, settings)
    startup.barrier("compared settings")
    folder.prepare(place, settings, mesh, on_change=on_change)
    begun = time.monotonic()
    look = None if job.style is None else Look(job.style, settings["beta"], settings["variant"])
    with workdir.claim(place):
        if stale and jax.process_index() == 0:
            shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)  # half of the old labels and half of the new ones are neither
        labeller = Labeller(voters, job.dataset.label_space, mesh, how=trial.how, look=look)
        digest = folder.digest(settings)
        about = {
            "networks": [{"name": voter.origin, "sha256": voter.sha256} for voter in voters],
            "data": repr(job.dataset),
            "style": "" if look is None else f"{look.dataset!r}, beta={look.beta}, {look.variant}",
            "settings": digest,
        }
        summary, sums = work.make(job, labeller, mesh, place, about)
        found = _score(job, trial, sums, place, ", ".join(voter.origin for voter in voters)) if job.scored else {}
        done = {
            "stage": settings["stage"],
            "digest": digest,
            "product": pseudo.SUMMARY,
            "scores": found,
            "images": summary["images"],
            "kept_pixels": summary["kept_pixels"],
            "labels_sha256": summary["labels_sha256"],
            "seconds": round(time.monotonic() - begun, 1),
        }
        if jax.process_index() == 0:
            folder.write_json(place / folder.DONE, done)
            shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)
        startup.barrier("wrote done.json")
    return done


def _score(job: work.Job, trial: scoring.Trial, sums: Sums, place: pathlib.Path, networks: str) -> dict[str, Any]:
    """Writes eval/ and returns the scores of done.json: of the pixels that were kept and, under a rule, of all pixels before it."""
    names = {SCORED: sums.confident} | ({} if job.rule == work.NO_RULE else {f"{SCORED}-all": sums.every})
    found = {}
    for name, confusion in names.items():
        score = scoring.score(dataclasses.replace(trial, name=name), confusion)
        result = scores.as_json(score, step=None, weights=networks)
        found[name] = {key: result[key] for key in ("headline", "miou", "means", "images")}
        if jax.process_index() == 0:
            scores.write(place / "eval", score, result)
    if jax.process_index() == 0:
        labels, data = pseudo.file_names(job.dataset), job.dataset
        for index in np.linspace(0, len(data) - 1, scoring.SAMPLES).round().astype(int).tolist():
            answer = read_label(place / pseudo.LABELS / labels[index])
            samples = place / "eval" / f"{SCORED}-{trial.split}" / "samples"
            scoring.write_sample(samples, data.name(index), data.image(index), data.label(index), answer, data.label_space)
    return found


def _voter(config, name: str, path: pathlib.Path) -> Voter:
    """The network that an earlier stage has trained."""
    network = evaluate.from_file(build.stage(config, name), path, path.parent)
    method, model = network.stage.method, network.stage.model
    grey = bool(network.stage.spec["method"].get("greyscale"))
    return Voter(method.predict, network.state, model.align_corners, network.space, network.first, grey, name, safetensors_io.sha256(path))


def _values(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's plain values with what it leaves out. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    known = (*NEEDED, *DEFAULTS, *inference.KEYS)
    for key in spec:
        if key not in known:
            raise ConfigError(f"{where}.{key}: a pseudo-label stage has no such key: {nearest(key, known)}")
    if missing := [key for key in NEEDED if not spec.get(key)]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: a pseudo-label stage has {', '.join(NEEDED)}")
    spec = {**DEFAULTS, **spec}
    if isinstance(spec["networks"], str):
        spec["networks"] = (spec["networks"],)
    check_values(spec, f"{where}.")
    return spec


def check_values(spec: Mapping[str, Any], where: str) -> None:
    """ConfigError names the key that is wrong. where: what precedes it in a message, "config.stages.NAME." or "--"."""
    inference.check_size(spec["size"], f"{where}size")
    inference.from_spec(spec, where)
    for key, choices in {"rule": work.RULES, "variant": ("centred", "corner")}.items():
        if spec[key] not in choices:
            raise ConfigError(f"{where}{key}={spec[key]!r}: {nearest(str(spec[key]), choices)}")
    for key, (low, high) in {"beta": (0.0, 0.5), "share": (0.0, 1.0), "cap": (0.0, 1.0)}.items():
        if not isinstance(spec[key], int | float) or not low <= spec[key] <= high:
            raise ConfigError(f"{where}{key}={spec[key]!r}: expected a number from {low:g} to {high:g}")
    if not isinstance(spec["batch_size"], int) or spec["batch_size"] < 1:
        raise ConfigError(f"{where}batch_size={spec['batch_size']!r}: expected a whole number, 1 or more")
