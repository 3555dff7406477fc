"""Data sets before they cost a run: check them, count them, look at them, write them as records.

    segjax data check  --images=DIR --labels=DIR      every bad file, the ids found in it, the likely cause and the fix
    segjax data stats  --dataset=gta5 --root=DIR      pixels of each class and image, for rare-class sampling; DAFormer's JSON files
    segjax data browse --file-list=train.txt          a contact sheet: images, label overlays, legend
    segjax data build  --dataset=gta5 --root=DIR      records that a pod reads fast

`segjax data ACTION --help` shows the flags of one. An action is a module `data_ACTION.py` beside this one.
"""

import argparse
import importlib

from segjax import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-parser an action, each with its own flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in cli.actions("data").items():
        module = _module(name)
        about = {"description": module.__doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
        module.add_arguments(actions.add_parser(name, help=text, allow_abbrev=False, **about))


def run(args: argparse.Namespace) -> int:
    """Runs the action that was asked for and returns its exit code."""
    return _module(args.action).run(args)


def _module(action: str):
    return importlib.import_module(f"segjax.verbs.data_{action.replace('-', '_')}")
