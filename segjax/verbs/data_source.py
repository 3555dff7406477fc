"""Which data set a `segjax data` action works on: a public one by name, two folders, a list file, or every data set of a config."""

import argparse
import ast
import difflib
import importlib
import inspect
import itertools
import json
import pathlib
import pkgutil
from typing import Any, NamedTuple

from segjax.data import encodings, label_spaces
from segjax.data.dataset import Dataset
from segjax.data.folders import FolderDataset
from segjax.errors import ConfigError
from segjax.verbs import build, stages

READERS = "segjax.data.readers"
"""The package with one module a public data set: `--dataset=gta5` is the Dataset class of its module `gta5`."""


class Source(NamedTuple):
    """One data set to work on.

    where: what to call it in messages: a key of a config, a folder, a file. spec: `{"make": "module:Class", **keywords}`.
    needs_labels: a run needs its labels. scored: it is an `evaluate` entry of a config, which has keys of the scorer too.
    """

    where: str
    spec: dict[str, Any]
    needs_labels: bool
    scored: bool


def add_source_arguments(parser: argparse.ArgumentParser, *, config: bool = True) -> None:
    """The flags that name a data set. config=False leaves out `--config`, for actions that take one data set only."""
    if config:
        parser.add_argument("--config", default="", metavar="FILE.py[:ARG]", help="the data sets of a config, each once")
    parser.add_argument("--dataset", default="", metavar="NAME", help=f"a public data set as downloaded: {', '.join(reader_names())}")
    parser.add_argument("--root", default="", metavar="DIR", help="folder of --dataset")
    parser.add_argument("--split", default="", metavar="NAME", help="split of --dataset, e.g. train")
    parser.add_argument("--images", default="", metavar="DIR", help="a folder of images, searched with its sub-folders")
    parser.add_argument("--labels", default="", metavar="DIR", help="the folder of their labels; leave out for an unlabelled set")
    parser.add_argument("--file-list", default="", metavar="FILE", help='text file of "image label" lines')
    parser.add_argument("--label-space", default="", metavar="NAME", help=f"one of {', '.join(label_spaces.LABEL_SPACES)}")
    parser.add_argument(
        "--encoding",
        default="",
        metavar="NAME",
        help=f"what the ids mean: {', '.join(encodings.ENCODINGS)}, or a JSON file of ids or colours",
    )
    parser.add_argument("--include", action="append", default=[], metavar="WORD", help="keep names with this word (may be repeated)")
    parser.add_argument("--exclude", action="append", default=[], metavar="WORD", help="drop names with this word (may be repeated)")
    text = "another argument of the data set, e.g. --with condition=night (may be repeated)"
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="KEY=VALUE", help=text)


def source_spec(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as `{"make": "module:Class", **keywords}`, to be built by `build.dataset`. ConfigError: no data set named, or several."""
    kinds = {"--dataset=NAME": args.dataset, "--images=DIR": args.images, "--file-list=FILE": args.file_list}
    given = [flag for flag, value in kinds.items() if value]
    if len(given) > 1 and given != ["--images=DIR", "--file-list=FILE"] or not given:
        raise ConfigError(
            f"data {args.action}: expected one of --dataset=NAME with --root=DIR, --images=DIR with --labels=DIR, --file-list=FILE"
            f"{', --config=FILE.py' * hasattr(args, 'config')}; got {' and '.join(given) or 'none'}"
        )
    if args.dataset:
        keys, maker = ("root", "split"), reader(args.dataset)
    else:
        keys, maker = ("images", "labels", "file_list"), f"{FolderDataset.__module__}:FolderDataset"
    spec: dict[str, Any] = {"make": maker}
    for other in {"root", "split", "labels"} - set(keys):
        if getattr(args, other):
            raise ConfigError(f"data {args.action}: --{other}={getattr(args, other)} does not go with {given[0]}")
    for key in (*keys, "label_space", "encoding", "include", "exclude"):
        value = getattr(args, key)
        if value:
            spec[key] = tuple(value) if isinstance(value, list) else value
    return spec | dict(_extra(text) for text in args.extra)


def sources(args: argparse.Namespace) -> list[Source]:
    """Every data set that the flags name: one, or all of a config's stages with equal ones once."""
    named = args.dataset or args.images or args.file_list
    if getattr(args, "config", ""):
        if named:
            raise ConfigError(f"data {args.action}: --config goes without --dataset, --images and --file-list ({named}): choose one")
        return _of_config(args.config)
    spec = source_spec(args)
    where = args.file_list or args.images or " ".join(filter(None, (args.dataset, args.split)))
    return [Source(where, spec, bool(args.labels), False)]


def open_source(source: Source, *, strict: bool = True) -> Dataset:
    """Builds the data set. strict=False: folders list their unpaired files in `unpaired` instead of refusing them."""
    maker = build.import_string(source.spec.get("make", ""), source.where)
    lenient = {} if strict or not _takes(maker, "strict") else {"strict": False}
    return build.dataset({**source.spec, **lenient}, source.where, scored=source.scored)


def reader_names() -> tuple[str, ...]:
    """The public data sets that can be read by name."""
    try:
        package = importlib.import_module(READERS)
    except ModuleNotFoundError:
        return ()
    return tuple(sorted(found.name for found in pkgutil.iter_modules(package.__path__) if not found.name.startswith("_")))


def reader(name: str) -> str:
    """'gta5' -> 'segjax.data.readers.gta5:GTA5'; 'acdc:Other' chooses among classes; 'my.module:Class' passes through. ConfigError else."""
    short, _, wanted = name.partition(":")
    if "." in short:
        return name
    known = reader_names()
    if short not in known:
        close = difflib.get_close_matches(short, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"--dataset={name}: {hint}known: {', '.join(known)}; your own class goes by 'package.module:Class'")
    module = importlib.import_module(f"{READERS}.{short}")
    classes = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Dataset) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    chosen = [key for key in classes if key == wanted] if wanted else classes
    if len(chosen) != 1:
        raise ConfigError(f"--dataset={name}: {module.__name__} has {', '.join(classes)}: choose with --dataset={short}:CLASS")
    return f"{module.__name__}:{chosen[0]}"


def _extra(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--with {text}: expected KEY=VALUE, e.g. --with condition=night")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _takes(maker: Any, keyword: str) -> bool:
    """Whether a data set's class, or the base class that it hands its `**keywords` on to, takes this keyword."""
    if not isinstance(maker, type):
        return False
    parameters = inspect.signature(maker).parameters
    onward = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return keyword in parameters or (onward and any(_takes(base, keyword) for base in maker.__bases__ if base is not object))


def _of_config(config) -> list[Source]:
    found: dict[str, Source] = {}
    for stage in build.stage_names(config):
        spec, where = build.plain(config.stages[stage]), f"config.stages.{stage}"
        if stages.verb(config, stage) == stages.TRAIN:
            parts = [
                Source(f"{where}.data.source", spec["data"]["source"], True, False),
                Source(f"{where}.data.target", spec["data"].get("target"), False, False),
            ]
            parts += [Source(f"{where}.evaluate.{name}", part, True, True) for name, part in spec["evaluate"].items()]
        else:
            parts = [
                Source(f"{where}.{key}", part, False, False) for key, part in spec.items() if isinstance(part, dict) and "make" in part
            ]
        for source in itertools.chain.from_iterable(map(_parts, parts)):
            found.setdefault(json.dumps(source.spec, sort_keys=True, default=str), source)
    return list(found.values())


def _parts(source: Source) -> list[Source]:
    """The data sets of a mixture, the one within a data set (photographs whose pseudo-labels are yet to be made), the one that it is, or
    none. Keys that say how much of a part is drawn are left out."""
    if source.spec and isinstance(source.spec.get("dataset"), dict):
        return _parts(source._replace(where=f"{source.where}.dataset", spec=source.spec["dataset"]))
    if not source.spec or "parts" not in source.spec:
        return [source] if source.spec else []
    own = [{key: value for key, value in part.items() if key not in build.PART_KEYS} for part in source.spec["parts"]]
    return [source._replace(where=f"{source.where}.parts[{number}]", spec=spec) for number, spec in enumerate(own)]


def folder_of(where: str) -> pathlib.PurePosixPath:
    """A config's data set as a relative folder: 'config.stages.a.data.source' -> 'a/data.source'."""
    return pathlib.PurePosixPath(*where.removeprefix("config.stages.").split(".", 1))
