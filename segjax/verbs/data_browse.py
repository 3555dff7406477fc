"""Draws a contact sheet of a data set: images under their labels, names, and a legend, as one PNG.

    segjax data browse --file-list=train.txt --label-space=camvid11 --output=sheet.png          spread evenly over the set
    segjax data browse --dataset=gta5 --root=DIR --output=buses.png --class=bus                 the images with most pixels of a class
    segjax data browse --images=DIR --output=sheet.png --names=0001,0002                        these images; labels are not needed
    segjax data browse --config=configs/camvid_day_dusk.py --output=OUT/sheet.png               a sheet for each data set of a config

Labels are laid over the images in the colours of their classes, ignored pixels are darkened, and an example that cannot be read says why.
"""

import argparse
import dataclasses
import pathlib

from segjax.data import browse, parallel
from segjax.data.dataset import Dataset
from segjax.errors import ConfigError, DataError
from segjax.verbs import data_source, data_stats


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax data browse`."""
    data_source.add_source_arguments(parser)
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FILE.png")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="images on the sheet (default 12)")
    parser.add_argument("--columns", type=int, default=4, metavar="N", help="images in a row (default 4)")
    parser.add_argument("--width", type=int, default=380, metavar="PIXELS", help="of one image (default 380)")
    parser.add_argument(
        "--opacity", type=float, default=0.55, help="of the label: 0 the photograph alone, 1 the colours alone (default 0.55)"
    )
    parser.add_argument("--class", dest="wanted", default="", metavar="CLASS", help="the images with most pixels of this class")
    parser.add_argument("--names", default="", metavar="A,B,...", help="these images, by a part of their names")
    parser.add_argument("--stats", type=pathlib.Path, metavar="DIR", help="folder of `data stats`, so that --class need not count again")


def run(args: argparse.Namespace) -> int:
    """Writes the sheet, one a data set. ConfigError: flags out of range, an unknown class or name. DataError: no image of the class."""
    if min(args.count, args.columns) < 1 or args.width < 64 or not 0 <= args.opacity <= 1:
        raise ConfigError(
            f"data browse: --count={args.count} --columns={args.columns} --width={args.width} --opacity={args.opacity}: "
            "expected 1 or more, 1 or more, 64 or more, and 0 to 1"
        )
    if args.wanted and args.names:
        raise ConfigError(f"data browse: --class={args.wanted} and --names={args.names} both choose the images: give one of them")
    if args.output.suffix.lower() != ".png":
        raise ConfigError(f"data browse: --output={args.output}: expected a name that ends in .png")
    sources = data_source.sources(args)
    for source in sources:
        dataset = data_source.open_source(source, strict=False)
        path = args.output
        if len(sources) > 1:
            path = path.with_stem(f"{path.stem}-{'-'.join(data_source.folder_of(source.where).parts)}")
        page = _sheet(source.where, dataset, args)
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, optimize=True)
        print(f"{path}: {page.width}x{page.height}, {path.stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


def _sheet(where: str, dataset: Dataset, args: argparse.Namespace):
    indices, about = _choose(where, dataset, args)
    walk = parallel.in_order(lambda place: browse.cell(dataset, indices[place], width=args.width, opacity=args.opacity), len(indices))
    cells = [_noted(one, dataset, args.wanted) for one in walk]
    words = [f"{len(cells)} of {len(dataset)} images{about}"]
    words += (
        [dataset.label_space.name, f"label at {100 * args.opacity:.0f} %, ignored pixels darkened"] if dataset.labelled else ["no labels"]
    )
    subtitle = "  \u00b7  ".join(words)
    return browse.sheet(cells, title=where, subtitle=subtitle, space=dataset.label_space, columns=args.columns, width=args.width)


def _choose(where: str, dataset: Dataset, args: argparse.Namespace) -> tuple[list[int], str]:
    """The indices to show and, in words, why these."""
    if args.names:
        return browse.named(dataset, args.names.split(",")), ""
    if not args.wanted:
        return browse.evenly(len(dataset), args.count), ", spread evenly" * (args.count < len(dataset))
    space = dataset.label_space
    if args.wanted not in space.classes:
        raise ConfigError(f"data browse: --class={args.wanted}: {space.name} has {', '.join(space.classes)}")
    with_counts = data_stats.counted(where, dataset, args.stats) if args.stats else data_stats.count(where, dataset)
    indices = browse.richest(with_counts.counts[:, space.classes.index(args.wanted)], args.count)
    if not indices:
        raise DataError(f"data browse: no label of {dataset!r} holds {args.wanted}: choose another class")
    return indices, f" with the most {args.wanted}"


def _noted(one: browse.Cell, dataset: Dataset, wanted: str) -> browse.Cell:
    """The share of the wanted class beside the name."""
    if not wanted or one.histogram is None:
        return one
    share = one.histogram[dataset.label_space.classes.index(wanted)] / one.histogram.sum()
    return dataclasses.replace(one, note=f"{100 * share:.1f} % {wanted}")
