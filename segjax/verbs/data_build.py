"""Writes a data set as records: a few large files (TFDS, ArrayRecord) that a pod reads fast, with the same arrays as the raw files.

    segjax data build --dataset=gta5 --root=DIR --output=RECORDS --resize=1280x720     a public data set as downloaded
    segjax data build --dataset=cityscapes --root=DIR --split=train,val --output=OUT   several splits in one folder
    segjax data build --images=DIR --labels=DIR --encoding=ids.json --output=OUT       folders of your own
    segjax data build --config=FILE.py --part=stages.fda.data.source --output=OUT      a data set of a config

A config reads them with {"make": "segjax.data.records:RecordDataset", "directory": OUT, "split": "train"}. Run again, it does nothing
while the files are the same; interrupted, it leaves nothing that looks finished.
"""

import argparse

from segjax.data.dataset import Dataset
from segjax.errors import ConfigError
from segjax.verbs import data_source
from segjax.verbs.arguments import parse_size
from segjax.verbs.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax data build`."""
    data_source.add_source_arguments(parser)
    parser.add_argument("--part", default="", metavar="KEY", help="which data set of --config, e.g. stages.fda.data.source")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--resize", default="", metavar="WIDTHxHEIGHT", help="store every example at this size")
    parser.add_argument("--overwrite", action="store_true", help="replace other records in --output")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")


def run(args: argparse.Namespace) -> int:
    """Writes the records and prints what stands where. ConfigError, DataError: see `record_builder.build`."""
    from segjax.data import record_builder  # TFDS takes two seconds to import, which the other actions should not wait for

    if args.threads < 0:
        raise ConfigError(f"data build: --threads={args.threads}: expected 0 (one a core) or more")
    datasets = {split: _open(source, args.resize) for split, source in _splits(args).items()}
    total = sum(map(len, datasets.values()))
    with progress(f"write {args.output}", total) as advance:
        written = record_builder.build(datasets, args.output, overwrite=args.overwrite, threads=args.threads or None, progress=advance)
    for split, dataset in datasets.items():
        print(f"{args.output} {split}: {len(dataset)} examples {'written' if written else 'already there'}, from {dataset!r}")
    return 0


def _splits(args: argparse.Namespace) -> dict[str, data_source.Source]:
    """Split name to write -> data set. Several splits of a reader stand in `--split`, separated by commas."""
    if getattr(args, "config", ""):
        sources = {source.where.removeprefix("config."): source for source in data_source.sources(args)}
        if args.part not in sources:
            raise ConfigError(f"data build: --part={args.part!r}: expected one data set of the config: {', '.join(sources)}")
        source = sources[args.part]
        return {source.spec.get("split", "train"): source}
    if args.part:
        raise ConfigError(f"data build: --part={args.part} goes with --config=FILE.py")
    found = {}
    for split in args.split.split(",") if args.split else [""]:
        source = data_source.sources(argparse.Namespace(**{**vars(args), "split": split}))[0]
        found[split or "train"] = source
    return found


def _open(source: data_source.Source, resize: str) -> Dataset:
    size = parse_size(resize, "--resize")
    keywords = {"resize": (size[1], size[0])} if size else {}
    return data_source.open_source(source._replace(spec={**source.spec, **keywords}))
