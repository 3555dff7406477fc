"""A folder of pseudo-labels from nothing to done.json: settings compared, labels made, scored where there is a truth."""

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
from segjax.runtime import log, workdir
from segjax.verbs import folder, frozen, scores, scoring, startup
from segjax.verbs import pseudo_label_work as work
from segjax.verbs.pseudo_label_files import Sums
from segjax.verbs.pseudo_label_network import Labeller, Voter
from segjax.verbs.pseudo_label_values import Job

SCORED = "pseudo-labels"
"""The name of their score, the same in every stage, so that a report puts them side by side."""


def finished(place: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """done.json of a folder whose labels were made with these settings, data and networks; it is left alone."""
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is None or done["digest"] != folder.digest(settings):
        return None
    if jax.process_index() == 0:
        shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)  # of a run that was killed in its last moment
    log.say(f"{place}: finished before with the same settings and inputs, nothing to do")
    return done


def finish(
    job: Job, voters: list[Voter], mesh: jax.sharding.Mesh, place: pathlib.Path, settings: Mapping[str, Any], *, on_change: str
) -> dict[str, Any]:
    """Makes labels, pseudo.json, eval/ and, last of all, done.json, which is returned.

    ConfigError when the folder holds work of other settings (`on_change`; continue labels everything anew in the same folder), or labels
    of another origin.
    """
    if (place / pseudo.LABELS).exists() and not (place / folder.CONFIG).is_file():
        raise ConfigError(
            f"{place / pseudo.LABELS} is there and was not made by `segjax pseudo-label`, which would replace it: choose another folder"
        )
    stale = on_change == "continue" and folder.changes(place, settings)
    startup.barrier("compared settings")
    folder.prepare(place, settings, mesh, on_change=on_change)
    begun = time.monotonic()
    networks = ", ".join(voter.origin for voter in voters)
    with workdir.claim(place):
        if stale and jax.process_index() == 0:
            shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)  # half of the old labels and half of the new ones are neither
        startup.barrier("cleared")
        centroids = frozen.load({"centroids": pathlib.Path(job.centroids)})["centroids"] if job.centroids else None
        labeller = Labeller(voters, job.dataset.label_space, mesh, how=job.how, look=job.look, centroids=centroids)
        look = "" if job.look is None else f"{job.look.dataset!r}, beta={job.look.beta}, {job.look.variant}"
        about = {"networks": [{"name": voter.origin, "sha256": voter.sha256} for voter in voters]}
        about |= {"data": repr(job.dataset), "style": look, "settings": folder.digest(settings)}
        summary, sums = work.make(job, labeller, mesh, place, about)
        done = {
            "stage": settings["stage"],
            "digest": folder.digest(settings),
            "product": pseudo.SUMMARY,
            "scores": _score(job, sums, place, networks) if job.scored else {},
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


def _score(job: Job, sums: Sums, place: pathlib.Path, networks: str) -> dict[str, Any]:
    """Writes eval/ and returns the scores of done.json: of the pixels that were kept and, where that is not every one, of all of them."""
    parts = {SCORED: sums.confident} | ({f"{SCORED}-all": sums.every} if sums.kept.sum() < sums.pixels else {})
    found = {}
    for name, confusion in parts.items():
        trial = scoring.Trial(name, job.split, job.dataset, job.size, job.how, job.headline)
        score = scoring.score(trial, confusion)
        result = scores.as_json(score, step=None, weights=networks)
        found[name] = {key: result[key] for key in ("headline", "miou", "means", "images")}
        if jax.process_index() == 0:
            scores.write(place / "eval", score, result)
    if jax.process_index() == 0:
        _samples(job, place)
    return found


def _samples(job: Job, place: pathlib.Path) -> None:
    """The pictures that a report shows, of the images of which it shows every stage's."""
    data, labels = job.dataset, pseudo.file_names(job.dataset)
    for index in sorted(set(np.linspace(0, len(data) - 1, scoring.SAMPLES).round().astype(int).tolist())):
        answer = read_label(place / pseudo.LABELS / labels[index])
        samples = place / "eval" / f"{SCORED}-{job.split}" / "samples"
        scoring.write_sample(samples, data.name(index), data.image(index), data.label(index), answer, data.label_space)


def text(done: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """What a person is told at the end: a row a class, then the scores' means. summary: of pseudo.json."""
    precision = summary.get("precision", {})
    header = ["class", "predicted %", "kept %", "threshold", *(["right %", "right of kept %"] if precision else [])]
    rows = []
    for index, name in enumerate(summary["classes"]):
        values = [summary["predicted"][index], summary["kept"][index]]
        right = [precision[key][index] for key in ("all", "kept")] if precision else []
        threshold = f"{summary['thresholds'][index]:.4f}"
        rows.append([name, *map(scores.percent, values), threshold, *map(scores.percent, right)])
    means = "".join(f"{name}: {score['headline']} {scores.percent(score['miou'])} %\n" for name, score in done["scores"].items())
    kept = f"{summary['images']} images, {scores.percent(summary['kept_pixels'])} % of their pixels labelled"
    return f"{scores.table(header, rows)}\n\n{means}{kept}"
