"""Counts the pixels of each class in every image, once, for rare-class sampling and for a look at the balance.

    segjax data stats --dataset=gta5 --root=DIR --workdir=OUT                  a public data set as downloaded
    segjax data stats --config=configs/camvid_day_dusk.py --workdir=OUT        every labelled data set of a config, a folder each
    segjax data stats --file-list=train.txt --label-space=camvid11 --workdir=OUT --from=DIR    read DAFormer's files instead of the labels

Leaves OUT/stats.json and, in DAFormer's own form, sample_class_stats.json, sample_class_stats_dict.json and samples_with_class.json. A
second run reads stats.json back while the data set is the same and no label is newer.
"""

import argparse
import pathlib

import numpy as np

from segjax.data import daformer_stats, statistics
from segjax.data.dataset import Dataset
from segjax.data.statistics import Statistics
from segjax.errors import ConfigError, DataError
from segjax.verbs import data_source
from segjax.verbs.progress import progress

TEMPERATURE, MIN_PIXELS = 0.01, 3000
"""DAFormer's temperature, and the pixels of a class that an image must exceed to be drawn for it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax data stats`."""
    data_source.add_source_arguments(parser)
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="folder for the statistics")
    parser.add_argument("--from", dest="given", default="", metavar="PATH", help="take the counts from this stats.json or DAFormer file")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help=f"of the rare-class probabilities (default {TEMPERATURE})")
    parser.add_argument("--force", action="store_true", help="count again even when stats.json fits the data set")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each data set and writes its files. DataError when none is labelled or a label cannot be read."""
    if args.temperature <= 0 or args.threads < 0:
        raise ConfigError(f"data stats: --temperature={args.temperature} --threads={args.threads}: expected above 0, and 0 or more")
    sources = data_source.sources(args)
    if args.given and len(sources) > 1:
        raise ConfigError(f"data stats: --from={args.given} belongs to one data set, but the config has {len(sources)}")
    done = 0
    for source in sources:
        dataset = data_source.open_source(source)
        if not dataset.labelled:
            continue
        folder = args.workdir / data_source.folder_of(source.where) if getattr(args, "config", "") else args.workdir
        found = counted(source.where, dataset, folder, given=args.given, force=args.force, threads=args.threads)
        print(f"\n{source.where}\n  {dataset!r}")
        for line in table(found, args.temperature):
            print(f"  {line}")
        print(f"  in {folder}: {', '.join(path.name for path in write(found, folder, dataset))}")
        done += 1
    if not done:
        raise DataError("data stats: no data set here has labels to count: give --labels, or a file list with two words a line")
    return 0


def counted(where: str, dataset: Dataset, folder: pathlib.Path, *, given: str = "", force: bool = False, threads: int = 0) -> Statistics:
    """The statistics of a data set: from `given`, else from FOLDER/stats.json if it still fits, else counted with a progress bar."""
    if given:
        return statistics.load(given, dataset)
    if not force and (known := statistics.load_current(folder, dataset)):
        return known
    return count(where, dataset, threads=threads)


def count(where: str, dataset: Dataset, *, threads: int = 0) -> Statistics:
    """Counts every label with a progress bar."""
    with progress(f"count {where}", len(dataset)) as advance:
        return statistics.compute(dataset, threads=threads or None, progress=lambda done, total: advance(1))


def write(found: Statistics, folder: pathlib.Path, dataset: Dataset) -> list[pathlib.Path]:
    """Writes stats.json and DAFormer's three files, which name the label files that its converters would have made."""
    own = statistics.save(found, folder, dataset)
    pairs = getattr(dataset, "pairs", None)
    labels = [label.as_posix() for _, label in pairs] if pairs else list(found.names)
    return [own, *daformer_stats.write(folder, found.label_space, [daformer_stats.label_file(label) for label in labels], found.counts)]


def table(found: Statistics, temperature: float) -> list[str]:
    """One line a class, most frequent first: share of the labelled pixels, images, images to draw from, probability of being drawn."""
    share, probability = found.frequencies(), found.rare_class_probabilities(temperature)
    images, rich = found.images_with(), found.images_with(MIN_PIXELS)
    width = max(map(len, (*found.label_space.classes, "(ignored)")))
    lines = [f"{'class':<{width}}  {'pixels':>8}  {'images':>7}  {f'> {MIN_PIXELS} px':>9}  {f'P(T={temperature:g})':>9}"]
    for k in np.argsort(-share, kind="stable"):
        lines.append(
            f"{found.label_space.classes[k]:<{width}}  {100 * share[k]:7.3f}%  {images[k]:7d}  {rich[k]:9d}  {probability[k]:9.2g}"
        )
    if found.ignored is not None:
        every = max(int(found.ignored.sum() + found.totals.sum()), 1)
        lines.append(f"{'(ignored)':<{width}}  {100 * found.ignored.sum() / every:7.3f}% of all pixels in {len(found)} images")
    return lines
