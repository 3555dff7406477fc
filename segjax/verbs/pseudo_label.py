"""Labels for images that have none, from one trained network or the mean of several: PNGs, their quality and a picture.

    segjax pseudo-label --config=FILE.py --stage=NAME --workdir=RUN/03-NAME      a pseudo-label stage of a config, by hand
    segjax pseudo-label --weights=A [--weights=B ...] --input=DIR --output=DIR    networks of files (trained here, or public ones)
    segjax pseudo-label --config=FILE.py --workdir=RUN --stage=A [--stage=B ...] --input=DIR|KEY --output=DIR      ... of a run's stages

The networks' class probabilities are averaged, resized to the image's own size, and the largest wins. --rule drops pixels that are not
sure enough for their class: "code" keeps the most confident 1 - SHARE of each class, "paper" the most confident SHARE, both whatever
reaches CAP (FDA's code and its paper differ); "consensus" keeps a pixel where the class whose centroid (--centroids) is nearest to the
network's feature is the label's (DiGA); 255 stands for a dropped pixel. --style shows each image to the networks in the look of the
next style image (`segjax stylize`). Leaves labels/NAME.png, labels.sha256, pseudo.json (thresholds, share kept, confidences, quality),
pseudo.png and, where the images have labels, eval/. Data sets read it by `segjax.data.pseudo:PseudoLabelled`.
A run that was stopped goes on with the images that are missing and ends with the same bytes; the temporary partial/ takes about 3 bytes a
pixel under a rule.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from segjax.data import folders, label_spaces, pseudo
from segjax.errors import ConfigError, DataError, WeightsError
from segjax.runtime import mesh as meshes
from segjax.verbs import build, folder, inference, scoring, stages, startup, train
from segjax.verbs import pseudo_label_result as result
from segjax.verbs import pseudo_label_values as values
from segjax.verbs import pseudo_label_voters as voters
from segjax.verbs.arguments import parse_size
from segjax.verbs.pseudo_label_network import Voter
from segjax.weights import safetensors_io


def add_arguments(parser: argparse.ArgumentParser):
    default = values.DEFAULTS
    parser.add_argument("--config", default="", metavar="FILE.py[:ARG]")
    parser.add_argument("--workdir", type=pathlib.Path, metavar="DIR", help="a run's directory; with a pseudo-label stage: its own folder")
    parser.add_argument(
        "--stage", action="append", default=[], metavar="NAME", help="a trained stage (several: their mean), or one to make"
    )
    text = "a trained file or a public checkpoint (several: their mean); with --config: of the --stage's network"
    parser.add_argument("--weights", action="append", default=[], type=pathlib.Path, metavar="FILE", help=text)
    parser.add_argument("--input", default="", metavar="DIR|KEY", help="folder of images, or a key of the stage: data.target")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="receives labels/, pseudo.json, pseudo.png, eval/")
    parser.add_argument("--labels", default="", metavar="DIR", help="labels of --input, which say how right the pseudo-labels are")
    parser.add_argument("--encoding", default="", metavar="NAME", help="what the ids of --labels mean, e.g. labelId")
    parser.add_argument("--label-space", default="", metavar="NAME", help="classes of the pseudo-labels (default: the networks')")
    parser.add_argument("--style", default="", metavar="DIR|KEY", help="images whose look the input is given: a folder, or data.source")
    parser.add_argument("--beta", type=float, default=default["beta"], help="share of low frequencies that --style replaces, 0..0.5")
    parser.add_argument("--variant", choices=values.VARIANTS, default=default["variant"], help="as `segjax stylize`")
    parser.add_argument("--rule", choices=values.RULES, default=default["rule"], help="which pixels are kept")
    parser.add_argument("--share", type=float, default=default["share"], help="of the rule, 0..1")
    parser.add_argument("--cap", type=float, default=default["cap"], help="a confidence that is always enough, 0..1")
    parser.add_argument("--centroids", default="", metavar="FILE", help="of --rule=consensus: what `segjax centroids` has left")
    parser.add_argument("--size", default="", metavar="WxH", help="resize images to this for the networks (default: their own size)")
    parser.add_argument("--batch-size", type=int, default=default["batch_size"], help="rounded up to the number of devices")
    inference.add_arguments(parser)
    train.add_on_change(parser)


def run(args: argparse.Namespace) -> int:
    """Labels the images and prints a row a class. ConfigError, DataError or WeightsError names what is missing; Preempted when stopped."""
    startup.begin(args)
    if args.config and len(args.stage) == 1 and stages.verb(args.config, args.stage[0]) != stages.TRAIN:
        place, done = _stage_by_hand(args)
    else:
        place, done = _by_flags(args)
    if jax.process_index() == 0:
        print(f"{result.text(done, pseudo.read_summary(place))}\n{place / 'pseudo.png'}", flush=True)
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no data."""
    for network in values.values(config, name, {})["networks"]:
        build.stage(config, network)


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Labels the data set of one stage in the folder `place`; returns what its done.json holds.

    A finished stage with the same settings, data and networks is left alone; one that was stopped goes on with the images that are missing.
    """
    where, spec = f"config.stages.{name}", values.values(config, name, places)
    dataset = build.dataset(spec["dataset"], f"{where}.dataset")
    style = build.dataset(spec["style"], f"{where}.style") if spec["style"] else None
    weights = {network: places[network] / folder.WEIGHTS for network in spec["networks"]}
    inputs = {"data": [repr(dataset), repr(style)], "weights": {key: safetensors_io.sha256(path) for key, path in weights.items()}}
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    if spec["centroids"]:
        inputs["centroids"] = _sha256(spec["centroids"])
    settings = folder.settings(config, name, inputs)
    if (done := result.finished(place, settings)) is not None:
        return done
    learned = scoring.learned_by(build.plain(config.stages[spec["networks"][0]])["data"]["source"])
    job = values.job({**spec, "split": spec["dataset"].get("split")}, dataset, style, learned, f"{where}.")
    mesh = build.call(meshes.make_mesh, spec["mesh"], f"{where}.mesh")
    networks = [voters.of_stage(config, network, path) for network, path in weights.items()]
    return result.finish(job, networks, mesh, place, settings, on_change=on_change)


def _stage_by_hand(args: argparse.Namespace) -> tuple[pathlib.Path, dict[str, Any]]:
    """A pseudo-label stage of the config in its own folder, from the stages that lie finished beside it."""
    if unused := [f"--{key.replace('_', '-')}" for key in ("weights", "input", "output", "labels", "style") if getattr(args, key)]:
        raise ConfigError(f"--stage={args.stage[0]} says itself what is labelled and by what: leave out {', '.join(unused)}")
    if args.workdir is None:
        raise ConfigError(f"--stage={args.stage[0]}: pass --workdir=DIR, the stage's own folder beside those of the stages that it reads")
    config, name = args.config, args.stage[0]
    check_stage(config, name)
    needed = stages.needs(build.plain(config.stages[name]))
    places = folder.beside(args.workdir, needed)
    if missing := [stage for stage in needed if stage not in places]:
        raise ConfigError(f"stage {name} reads {', '.join(missing)}, which do not lie finished beside {args.workdir}: use `segjax run`")
    return args.workdir, run_stage(config, name, args.workdir, places, args.on_change)


def _by_flags(args: argparse.Namespace) -> tuple[pathlib.Path, dict[str, Any]]:
    """Images and networks that the flags choose."""
    if not args.input or args.output is None:
        raise ConfigError("pseudo-label: pass --input=DIR (images to label) and --output=DIR, or the --stage of a config that says both")
    size = parse_size(args.size)
    spec = {**values.DEFAULTS, **inference.from_flags(args), "size": size and size[::-1]}
    spec |= {key: getattr(args, key) for key in ("beta", "variant", "rule", "share", "cap", "centroids", "batch_size")}
    values.check(spec, "--")
    networks = _networks(args)
    dataset = _dataset(args, "input", networks[0].space)
    style = _dataset(args, "style", networks[0].space) if args.style else None
    inputs: dict[str, Any] = {"data": [repr(dataset), repr(style)], "weights": [network.sha256 for network in networks]}
    if args.centroids:
        inputs["centroids"] = _sha256(args.centroids)
    settings = json.loads(json.dumps({"stage": "", **spec, "inputs": inputs}))
    if (done := result.finished(args.output, settings)) is not None:
        return args.output, done
    learned = networks[0].space.classes
    if args.config:
        learned = scoring.learned_by(build.plain(args.config.stages[_stage_names(args)[0]])["data"]["source"])
    job = values.job({**spec, "split": "input"}, dataset, style, learned, "--")
    return args.output, result.finish(job, networks, meshes.make_mesh(), args.output, settings, on_change=args.on_change)


def _sha256(path: str) -> str:
    """WeightsError when there is no such file."""
    if not pathlib.Path(path).is_file():
        raise WeightsError(f"{path}: no such file of centroids: `segjax centroids` makes it")
    return safetensors_io.sha256(path)


def _stage_names(args: argparse.Namespace) -> list[str]:
    return args.stage or [build.last_trained(args.config)]


def _networks(args: argparse.Namespace) -> list[Voter]:
    """The networks of --weights, or those that stages have trained. ConfigError: neither, or both at once."""
    if not args.config:
        if not args.weights or args.stage:
            raise ConfigError("pseudo-label: pass --weights=FILE (one or more), or --config=FILE.py with --workdir=DIR and --stage=NAME")
        return [voters.of_file(path) for path in args.weights]
    names = _stage_names(args)
    if args.weights:
        if len(names) > 1:
            raise ConfigError(f"--weights with {len(names)} times --stage: name the one stage whose network these weights are of")
        return [voters.of_stage(args.config, names[0], path, str(path)) for path in args.weights]
    if args.workdir is None:
        raise ConfigError(f"stage {', '.join(names)}: pass --workdir=DIR, the run that has trained it, or --weights=FILE")
    alone = args.workdir if len(names) == 1 else args.workdir / names[0]
    return [voters.of_stage(args.config, name, (folder.of_stage(args.workdir, name) or alone) / folder.WEIGHTS) for name in names]


def _dataset(args: argparse.Namespace, flag: str, space: label_spaces.LabelSpace) -> Any:
    """The images of --input or --style: a folder (with --labels, for the input), or a data set of the config's stage by its key."""
    text = getattr(args, flag)
    if pathlib.Path(text).is_dir():
        given: dict[str, Any] = {"label_space": args.label_space or space.name}
        if flag == "input" and args.labels:
            given |= {"labels": args.labels, "encoding": args.encoding or None}
        return folders.FolderDataset(text, **given)
    if not args.config or (flag == "input" and args.labels):
        raise DataError(f"--{flag}={text}: no such folder{' (which --labels needs)' if args.labels else ''}")
    name = _stage_names(args)[0]
    found, walked = build.plain(args.config.stages[name]), f"config.stages.{name}"
    for key in text.split("."):
        if not isinstance(found, Mapping) or key not in found:
            known = ", ".join(found) if isinstance(found, Mapping) else "none"
            raise DataError(f"--{flag}={text}: no such folder, and {walked} has no {key!r} (known: {known})")
        found, walked = found[key], f"{walked}.{key}"
    if not isinstance(found, Mapping) or "make" not in found:
        raise ConfigError(f"--{flag}={text}: {walked} is no data set (no `make`): try data.target")
    run = args.workdir or pathlib.Path()
    places = {stage: place for stage in stages.read_by_text(found) if (place := folder.of_stage(run, stage)) is not None}
    return build.dataset(stages.filled(found, places), walked, scored=text.startswith("evaluate."))
