"""Pseudo-labels refined by SAM, MobileSAM or EfficientSAM, as CLOUDS does it: large components in, the segmenter's masks out.

    segjax refine --model=mobile_sam.pt --images=DIR --labels=DIR --output=DIR

--labels is a folder that `segjax pseudo-label` left, or any folder of label PNGs whose names fit those of the images. Every component of
more than --min-area pixels gives a prompt of --points of its pixels; of the three masks that the network answers the one of best predicted
IoU counts; pixels of several masks belong to none (255), and so do those of no mask; an image without a prompt keeps its label.
Leaves labels/NAME.png, labels.sha256, pseudo.json (a data set reads all that by `segjax.data.pseudo:PseudoLabelled`) and before_after.png.
--features reads what `segjax embed` of the same network has kept of the images, and the encoder does not run.
A run that was stopped goes on with the images that are missing; an image's label depends on its place in the folder and on --seed, not on
the batch, the devices or when it was made.
"""

import argparse
import json
import pathlib
from typing import Any

from segjax.data import features, folders, label_spaces, pseudo
from segjax.data.dataset import Dataset
from segjax.errors import ConfigError, WeightsError
from segjax.nets import label_refiner
from segjax.runtime import workdir
from segjax.verbs import folder, networks, startup
from segjax.verbs import refine_work as work
from segjax.verbs.segmenter_features import is_segmenter

OPTIONS = ("min_area", "points", "places", "erode", "keep_overlaps", "second_pass", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a segjax file, or a public checkpoint (file or folder)")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images")
    parser.add_argument("--labels", required=True, type=pathlib.Path, metavar="DIR", help="their pseudo-labels")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="receives labels/, pseudo.json, before_after.png")
    parser.add_argument("--features", default="", metavar="DIR", help="the images' features, as `segjax embed` of this --model left them")
    parser.add_argument("--label-space", default="", metavar="NAME", help="classes of the labels (default: as pseudo.json says)")
    parser.add_argument("--encoding", default="", metavar="NAME", help="what the ids of --labels mean (default: train ids)")
    parser.add_argument("--min-area", type=int, default=5000, metavar="N", help="pixels that a component must exceed")
    parser.add_argument("--points", type=int, default=5, metavar="N", help="pixels of a component that make its prompt")
    parser.add_argument("--places", type=int, default=0, metavar="N", help="components of an image at most, the largest (0: all)")
    parser.add_argument("--erode", action="store_true", help="draw points from the inside of components (3x3 erosion)")
    parser.add_argument("--keep-overlaps", action="store_true", help="a pixel of several masks gets the highest of their classes")
    parser.add_argument("--second-pass", action="store_true", help="give the network its own best mask as a prompt and ask again")
    parser.add_argument("--seed", type=int, default=0, help="of the random points")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="rounded up to the number of devices")
    parser.add_argument("--dtype", default="", help="compute dtype: float32 or bfloat16 (default: the file's, else float32)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of the network that no file tells")


def run(args: argparse.Namespace) -> int:
    """Refines the labels. ConfigError: values that make no sense, another run's folder. DataError: images, labels. WeightsError: model."""
    for name, least in (("min_area", 0), ("points", 1), ("places", 0), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(args, name)}: expected {least} or more")
    startup.one_process("refine", args)
    dataset = _dataset(args)
    startup.begin(args, image_by_image=True)
    network = networks.load(args.model, settings=networks.settings(args.set) | ({"dtype": args.dtype} if args.dtype else {}))
    if not is_segmenter(network):
        name = type(network.module).__name__
        raise WeightsError(f"--model: its network is a {name}, which takes no prompts: expected SAM, MobileSAM or EfficientSAM")
    kept = None
    if args.features:
        kept = features.WithFeatures(dataset, args.features)
        features.check_weights(kept.root, kept.summary, networks.hashes(args.model))
    label_refiner.check(network.module, args.points, args.second_pass)
    settings = {name: getattr(args, name) for name in OPTIONS} | {"dtype": args.dtype, "set": args.set}
    settings |= {"model": networks.hashes(args.model), "data": repr(dataset), "label_space": dataset.label_space.name}
    settings |= {"features": kept.summary["sha256"]} if kept else {}
    settings = json.loads(json.dumps(settings))
    if _finished(args.output, settings):
        print(f"{args.output}: finished before with the same settings and inputs, nothing to do")
        return 0
    folder.writable(args.output)
    with workdir.claim(args.output):
        folder.write_json(args.output / folder.CONFIG, settings)
        options = {
            "min_area": args.min_area,
            "num_points": args.points,
            "places": args.places or None,
            "erode": args.erode,
            "remove_overlaps": not args.keep_overlaps,
            "second_pass": args.second_pass,
        }
        work.make(dataset, network, args.output, batch_size=args.batch_size, seed=args.seed, options=options, kept=kept)
        summary = work.summarize(dataset, args.output, settings)
    print(work.text(summary))
    print(f"{len(dataset)} labels in {args.output}, {args.output / work.PICTURE}")
    return 0


def _dataset(args: argparse.Namespace) -> Dataset:
    """The images with their labels."""
    if not (args.labels / pseudo.SUMMARY).exists():
        space = args.label_space or "cityscapes19"
        return folders.FolderDataset(args.images, labels=args.labels, label_space=space, encoding=args.encoding or None)
    if args.encoding:
        raise ConfigError(f"--encoding={args.encoding}: {args.labels} holds pseudo-labels, which are train ids: leave it out")
    summary = pseudo.read_summary(args.labels)
    known = summary["label_space"] in label_spaces.LABEL_SPACES
    own = dict(zip(summary["classes"], summary.get("palette", []), strict=False))
    space: Any = args.label_space or (summary["label_space"] if known else own)
    return pseudo.PseudoLabelled(folders.FolderDataset(args.images, label_space=space), args.labels)


def _finished(place: pathlib.Path, settings: dict[str, Any]) -> bool:
    """Whether all is there. ConfigError when the folder holds what other settings, or something else, have made."""
    old = folder.read_json(place / folder.CONFIG)
    if old is None and (place / pseudo.LABELS).exists():
        raise ConfigError(f"{place / pseudo.LABELS} is there and was not made by `segjax refine`: choose another --output")
    if old is not None and (found := [key for key in {*old, *settings} if old.get(key) != settings.get(key)]):
        changed = ", ".join(f"{key} {old.get(key)} -> {settings.get(key)}" for key in sorted(found))
        raise ConfigError(f"{place} was made with other settings ({changed}): choose another --output, or delete it")
    return old is not None and (place / pseudo.SUMMARY).is_file()
