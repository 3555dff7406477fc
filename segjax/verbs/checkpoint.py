"""`checkpoint list` and `checkpoint verify`: the saves of a run or a stage, and whether every byte is what was written."""

import argparse
import datetime
import pathlib

from segjax.errors import ConfigError, WeightsError
from segjax.runtime import checkpoint


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("action", choices=["list", "verify"], help="list: steps, sizes and times; verify: sha256 of every file")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, metavar="DIR", help="a run's directory or one stage's")


def run(args: argparse.Namespace) -> int:
    """One line a save. Exit 4 (WeightsError) when `verify` finds a damaged one, after the whole list."""
    damaged = []
    for place in stages(args.workdir):
        saves = checkpoint.Checkpoints(place / "checkpoints")
        for step in saves.steps():
            line = f"{place.name}  step {step}  {_about(place / 'checkpoints' / str(step))}"
            if args.action == "verify":
                try:
                    saves.verify(step)
                    line += "  good"
                except WeightsError as error:
                    damaged.append(f"{place.name} step {step}")
                    line += f"  DAMAGED: {error}"
            print(line, flush=True)
    if damaged:
        raise WeightsError(f"{len(damaged)} damaged: {', '.join(damaged)}; training falls back to the newest good one by itself")
    return 0


def stages(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The folders that hold saves: DIR itself or the stages within it. ConfigError when there is none."""
    places = [path for path in (workdir, *(sorted(workdir.iterdir()) if workdir.is_dir() else ())) if (path / "checkpoints").is_dir()]
    if not places:
        raise ConfigError(f"--workdir={workdir}: no checkpoints/ there nor in its stages: is it the --workdir of a training?")
    return places


def _about(save: pathlib.Path) -> str:
    size = sum(path.stat().st_size for path in save.rglob("*") if path.is_file())
    time = datetime.datetime.fromtimestamp(save.stat().st_mtime).isoformat(" ", "seconds")
    return f"{size / 1e6:.1f} MB  {time}"
