"""What every verb that computes does first: join the other processes, if there are any, and keep compiled programs on disk."""

import argparse
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
from jax.experimental import multihost_utils

import segjax
from segjax.errors import ConfigError
from segjax.runtime import cluster, compile, cpu_devices, meeting, peers

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def begin(args: argparse.Namespace | None = None, *, image_by_image: bool = False) -> None:
    """Call before the first device is touched.

    image_by_image: the work needs nothing of another image, and on a CPU two are under way at once (`cpu_devices.share_cores`).

    Many processes: `cluster.find` tells which they are and `meeting.join` brings them together. ConfigError, alike in all of them, when
    they do not run the same sources, packages, command and config (`args.config`), or have different numbers of devices.
    """
    if not jax.distributed.is_initialized():
        if (found := cluster.find(_environment(args))) is not None:
            meeting.join(found, lambda: peers.agree(_facts(args)))
        elif image_by_image:
            cpu_devices.share_cores()
    compile.enable_cache()


def one_process(verb: str, args: argparse.Namespace, instead: str = "start one for each part of the images") -> None:
    """ConfigError in a run of many processes, for a verb that works in one. instead: what to do."""
    found = cluster.find(_environment(args))
    if found is not None and found.count != 1:
        raise ConfigError(f"{verb} works in one process: {instead}, without --coordinator and --distributed ({cluster.DETECT})")


def barrier(name: str) -> None:
    """Waits for the other processes, so that none reads a file before the first one has written it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _environment(args: argparse.Namespace | None) -> dict[str, str]:
    """The environment, and over it what the flags say that every such verb has (`segjax.cli`)."""
    flags = {variable: getattr(args, flag[2:].replace("-", "_"), "") for flag, variable in cluster.FLAGS.items()}
    return {**os.environ, **{variable: value for variable, value in flags.items() if value}}


def _facts(args: argparse.Namespace | None) -> dict[str, Any]:
    """What must be alike in every process of a run."""
    root = pathlib.Path(segjax.__file__).parent
    sources = sorted(root.rglob("*.py"))
    found: dict[str, Any] = {name: version(name) for name in _PACKAGES}
    found |= {f"segjax/{path.relative_to(root)}": hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in sources}
    if config := getattr(args, "config", None):
        from segjax.verbs import build, folder  # the data pipeline's packages, which a verb without a config does not need

        found |= {f"config.{key}": repr(value) for key, value in folder.flatten(build.plain(config)).items()}
    found |= {f"the argument {word}": "given" for word in _arguments(sys.argv[1:])}
    return found


def _arguments(argv: list[str]) -> Iterator[str]:
    """Those that must be alike: not this process's number, nor folders, nor the config, which is compared by value."""
    own, skip = (*cluster.FLAGS, "--workdir", "--output", "--config"), False
    for word in argv:
        name = word.partition("=")[0]
        if not skip and name not in own and not name.startswith(("--config.", "--noconfig.")):
            yield word
        skip = word in own and word != "--distributed"
