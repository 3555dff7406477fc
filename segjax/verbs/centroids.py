"""Class centroids of a trained network's features over a data set, from which DiGA's self-training starts.

    segjax centroids --config=FILE.py --stage=NAME --workdir=RUN/05-NAME      a centroids stage of a config, by hand

The network labels every image (in evaluation, as it is, at --size of the stage); the mean feature of each image's classes of `min_pixels`
or more enters its class's running mean, image after image, `passes` times over the set, the count held at `cap` (DiGA: 5, 5, 3,000).
Nothing changes between two passes, so the network makes one. Leaves centroids.safetensors ("centroids" [K,D], "counts" [K]) and
centroids.json. A run that was stopped goes on with the images that are missing and ends with the same bytes.
Source: fy-vision/DiGA GTA5/calc_centroids.py; there the count's cap makes it a moving average of rate 1 / 3,001, here too.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from segjax.errors import ConfigError
from segjax.runtime import mesh as meshes
from segjax.verbs import build, evaluate, folder, inference, stages, startup, train
from segjax.verbs import centroids_work as work
from segjax.verbs.resolve import nearest
from segjax.weights import safetensors_io

NEEDED = ("verb", "networks", "dataset")
DEFAULTS: dict[str, Any] = {"size": None, "passes": 5, "cap": 3000, "min_pixels": 5, "batch_size": 1, "mesh": {}}
"""Keys that a stage may leave out, and what they are then."""


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--stage", required=True, metavar="NAME", help="a centroids stage of the config")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="its own folder, beside those that it reads")
    train.add_on_change(parser)


def run(args: argparse.Namespace) -> int:
    """Makes the stage from those that lie finished beside it. ConfigError, DataError or WeightsError; Preempted when stopped."""
    startup.begin(args)
    config, name = args.config, args.stage
    if (verb := stages.verb(config, name)) != "centroids":
        raise ConfigError(f"--stage={name}: is made by `segjax {verb}`: name a stage with verb='centroids'")
    check_stage(config, name)
    needed = stages.needs(build.plain(config.stages[name]))
    places = folder.beside(args.workdir, needed)
    if missing := [stage for stage in needed if stage not in places]:
        raise ConfigError(f"stage {name} reads {', '.join(missing)}, which do not lie finished beside {args.workdir}: use `segjax run`")
    run_stage(config, name, args.workdir, places, args.on_change)
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no data."""
    build.stage(config, values(config, name, {})["network"])


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Makes the centroids of one stage in the folder `place`; returns what its done.json holds.

    A finished stage with the same settings, data and network is left alone; one that was stopped goes on.
    """
    spec = values(config, name, places)
    dataset = build.dataset(spec["dataset"], f"config.stages.{name}.dataset").unlabelled()
    weights = places[spec["network"]] / folder.WEIGHTS
    inputs: dict[str, Any] = {"data": [repr(dataset)], "weights": {spec["network"]: safetensors_io.sha256(weights)}}
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    settings = folder.settings(config, name, inputs)
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is not None and done["digest"] == folder.digest(settings):
        print(f"{place}: finished before with the same settings and inputs, nothing to do", flush=True)
        return done
    network = evaluate.from_file(build.stage(config, spec["network"]), weights, weights.parent)
    mesh = build.call(meshes.make_mesh, spec["mesh"], f"config.stages.{name}.mesh")
    job = work.Job(dataset, *(spec[key] for key in ("size", "passes", "cap", "min_pixels", "batch_size")))
    done = work.finish(job, network, mesh, place, settings, on_change=on_change)
    if jax.process_index() == 0:
        print(f"centroids of {done['classes']} classes from {done['images']} images: {place / work.FILE}", flush=True)
    return done


def values(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's plain values with what it leaves out, and the one `network`. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    known = (*NEEDED, *DEFAULTS)
    for key in spec:
        if key not in known:
            raise ConfigError(f"{where}.{key}: a centroids stage has no such key: {nearest(key, known)}")
    if missing := [key for key in NEEDED if not spec.get(key)]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: a centroids stage has {', '.join(NEEDED)}")
    networks = (spec["networks"],) if isinstance(spec["networks"], str) else spec["networks"]
    if len(networks) != 1:
        raise ConfigError(f"{where}.networks={networks!r}: expected one stage, whose network's features are meant")
    spec = {**DEFAULTS, **spec, "network": networks[0]}
    inference.check_size(spec["size"], f"{where}.size")
    for key in ("passes", "cap", "min_pixels", "batch_size"):
        if not isinstance(spec[key], int) or spec[key] < 1:
            raise ConfigError(f"{where}.{key}={spec[key]!r}: expected a whole number, 1 or more")
    return spec
