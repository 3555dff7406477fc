"""Per-class IoU, mIoU (named by its classes) and confusion matrix of a trained stage or a weights file on a config's data sets.

Writes DATASET-SPLIT.json, .md, .png and sample pictures to DIR/NN-STAGE/eval/ (DIR/eval/ with --weights, or when DIR is the stage itself).
A weights file keeps its own outputs: a Cityscapes network is scored on CamVid by the map between the two label spaces.
Labels keep their own size whatever the network is fed. Means are named by their classes, and a network trained on SYNTHIA is led by mIoU16.
--scales, --flip, --window and their companions replace what the config's `evaluate` entries say (`segjax.verbs.inference`).
--predictions=DIR scores label PNGs that are there already, with no network: segjax's own, or another program's.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from segjax.data import label_spaces
from segjax.errors import ConfigError, WeightsError
from segjax.runtime import checkpoint
from segjax.runtime import mesh as meshes
from segjax.verbs import build, folder, inference, score_files, scores, scoring, startup, variables


def add_arguments(parser: argparse.ArgumentParser):
    add_network_arguments(parser)
    inference.add_arguments(parser)
    parser.add_argument("--predictions", type=pathlib.Path, metavar="DIR", help="score the label PNGs in it instead of a network")
    parser.add_argument("--ids", choices=score_files.IDS, default="trainId", help="what those PNGs hold")
    parser.add_argument("--dataset", default="", metavar="NAME", help="only this one of the stage's `evaluate` data sets")


def add_network_arguments(parser: argparse.ArgumentParser):
    """The flags that choose a network, shared with `predict`."""
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="a run's directory or one stage's")
    parser.add_argument("--stage", default="", metavar="NAME", help="default: the config's last stage that is trained")
    parser.add_argument("--weights", type=pathlib.Path, metavar="FILE", help="segjax safetensors, in place of what the stage has learned")


def run(args: argparse.Namespace) -> int:
    """Scores and prints one table a data set. DataError, WeightsError or ConfigError names what is missing."""
    changes = inference.from_flags(args)
    if args.predictions is not None:
        return _score_files(args, changes)
    network = load(args)
    mesh = build.make_mesh(network.stage)
    scorer = scoring.Scorer(network.stage, network.space, network.first, mesh)
    state = meshes.replicate(network.state, mesh)
    for trial in scoring.trials(network.stage, args.dataset, changes):
        samples = network.place / "eval" / f"{trial.name}-{trial.split}" / "samples"
        folder.writable(network.place / "eval")
        score = scorer(state, trial, samples)
        result = scores.as_json(score, step=network.step, weights=network.source)
        if jax.process_index() == 0:
            scores.write(network.place / "eval", score, result)
            print(scores.markdown(result), flush=True)
    return 0


def _score_files(args: argparse.Namespace, changes: dict[str, Any]) -> int:
    if args.weights is not None or changes:
        unused = ", ".join(["--weights"] * (args.weights is not None) + [f"--{key.replace('_', '-')}" for key in changes])
        raise ConfigError(f"--predictions={args.predictions} runs no network, so {unused} would do nothing: leave it out")
    stage = build.stage(args.config, args.stage or build.last_trained(args.config))
    folder.writable(args.workdir / "eval")
    for trial in scoring.trials(stage, args.dataset):
        score = score_files.score_files(trial, args.predictions, args.ids)
        result = scores.as_json(score, step=None, weights=str(args.predictions))
        scores.write(args.workdir / "eval", score, result)
        print(scores.markdown(result), flush=True)
    return 0


@dataclasses.dataclass(frozen=True)
class Network:
    """A stage with a state that `predict` can use. space, first: what its outputs mean (`build.output_space`). place: its folder."""

    stage: build.Stage
    state: Any
    space: label_spaces.LabelSpace
    first: int
    place: pathlib.Path
    source: str
    step: int | None


def load(args: argparse.Namespace) -> Network:
    """The network that the flags choose: --weights, else the stage's exported weights, else its newest checkpoint."""
    startup.begin(args)
    stage = build.stage(args.config, args.stage or build.last_trained(args.config))
    if not hasattr(stage.model, "num_classes"):
        kind = type(stage.model).__name__
        raise ConfigError(f"stage {stage.name} trains a {kind}, which gives no classes: pass --stage with a segmentation network")
    place = folder.of_stage(args.workdir, stage.name) or args.workdir
    if args.weights is not None:
        return from_file(stage, args.weights, args.workdir)
    # Without done.json beside checkpoints, exported weights are those of an earlier run in a folder that trains on.
    if (place / folder.WEIGHTS).is_file() and (folder.read_done(place) is not None or not (place / "checkpoints").is_dir()):
        return from_file(stage, place / folder.WEIGHTS, place)
    return _from_checkpoint(stage, place)


def from_file(stage: build.Stage, path: pathlib.Path, place: pathlib.Path) -> Network:
    """A stage over the weights in a file; its outputs are the file's. place: the folder that the network is said to be of."""
    count, name = variables.outputs_of(path, stage.model)
    space, first = build.output_space(name, count, str(path))
    stage = stage.with_classes(count)
    state = variables.into_state(stage, variables.load(path, stage.model), batch_shapes())
    done = folder.read_done(place) if path.parent == place else None
    return Network(stage, state, space, first, place, path.name, done["steps"] if done else None)


def _from_checkpoint(stage: build.Stage, place: pathlib.Path) -> Network:
    saves = place / "checkpoints"
    if not saves.is_dir():
        raise WeightsError(
            f"{place}: neither {folder.WEIGHTS} nor checkpoints/ there: train stage {stage.name} first, or pass --weights=FILE"
        )
    data = stage.spec["data"]["source"]
    space = label_spaces.get(data["label_space"]) if "label_space" in data else build.dataset(data, "data.source").label_space
    if space.num_classes != stage.model.num_classes:
        raise ConfigError(
            f"stage {stage.name}: the network has {stage.model.num_classes} outputs, {space.name} has {space.num_classes} classes"
        )
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.eval_shape(stage.method.init, jax.random.key(0), batch_shapes())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), abstract)
    state, step = checkpoint.Checkpoints(saves).restore(abstract)
    return Network(stage, jax.device_get(state), space, 0, place, f"checkpoints/{step}", step)


def batch_shapes(height: int = 64, width: int = 64) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of one image as shapes: what a method's init needs to know. Parameters do not depend on the size."""
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.uint8)
    label = jax.ShapeDtypeStruct((1, height, width), np.uint8)
    return {"source_image": image, "source_label": label, "target_image": image}
