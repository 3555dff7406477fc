"""`segjax VERB --config=FILE.py[:ARG] [--config.key=value ...] --workdir=DIR`: finds the verb, reads its flags, gives the exit code.

A verb is a module of `segjax/verbs` with `add_arguments(parser)` and `run(args) -> int`; the first line of its docstring is its help.
A verb with actions (`segjax data check`) has a module `VERB_ACTION.py` of the same form for each.
Only the chosen verb is imported, so `segjax --help` starts neither jax nor any other slow library. A verb that declares the argument
`--config` receives the loaded, overridden and locked ConfigDict as `args.config`, and what was typed as `args.config_file`.
"""

import argparse
import ast
import difflib
import functools
import importlib
import importlib.metadata
import logging
import os
import pathlib
import sys
from collections.abc import Sequence

from segjax import __version__
from segjax.errors import ConfigError, SegjaxError
from segjax.runtime.allocator import keep_pages
from segjax.runtime.frames import roomy

_VERBS = pathlib.Path(__file__).parent / "verbs"
EXIT_CODES = "0 done, 1 failed, 2 usage or config, 3 data, 4 weights or checkpoint, 75 preempted after a save (start again to go on)"
INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit codes as a shell gives them: 128 + SIGINT and 128 + SIGPIPE."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line and exit code 2, like every other mistake."""

    def error(self, message: str):
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code (`EXIT_CODES`)."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax reports every save at INFO
    os.environ["XLA_FLAGS"] = xla_flags(os.environ.get("XLA_FLAGS", ""))
    keep_pages()
    code, said = 1, ""
    try:
        code = roomy(_dispatch, list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except SegjaxError as error:
        code, said = error.code, str(error)
        print(f"segjax: {said}", file=sys.stderr)
    except KeyboardInterrupt:
        code, said = INTERRUPTED, "interrupted"
        print(f"segjax: {said}", file=sys.stderr)
    except BrokenPipeError:
        # The reader (head, less) has gone; point stdout elsewhere or the interpreter complains once more when it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, said = BROKEN_PIPE, "its output was closed"
    except Exception as error:
        if (peers := _peers()) is None:
            raise
        peers.failed(error)
    if (peers := _peers()) is not None:
        peers.leave(code, said)
    return code


def _peers():
    """The other processes of a run of many, which must hear how this one ends; None in a run of one, which has loaded nothing of them."""
    module = sys.modules.get("segjax.runtime.peers")
    return module.current() if module else None


def xla_flags(given: str) -> str:
    """XLA_FLAGS with which a CPU computes bfloat16 right; `given` wins.

    jaxlib 0.12 hands some bfloat16 products on a CPU to a library that answers with garbage (seen in the third stage of a CLIP ResNet,
    under jit alone, in float32 never); without those fusions they are right. jaxlib 0.10 is right as it is.
    """
    name = "--xla_cpu_experimental_ynn_fusion_type"
    major, minor = (int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    return given if (major, minor) < (0, 11) or name in given else f"{given} {name}=".strip()


def verbs() -> dict[str, str]:
    """Name -> first line of help of every verb, read from the source without importing it. `data_check.py` is an action of `data`."""
    found = _entries("*.py")
    return {name: text for name, text in found.items() if not any(name.startswith(f"{verb}-") for verb in found)}


def actions(verb: str) -> dict[str, str]:
    """The actions of a verb that has some (`segjax data check`), as `verbs` gives the verbs: the modules VERB_ACTION.py."""
    return {name.removeprefix(f"{verb}-"): text for name, text in _entries(f"{verb}_*.py").items()}


@functools.cache  # read once a process: parsing the verbs takes longer than most mistakes
def _entries(pattern: str) -> dict[str, str]:
    found = {}
    for path in sorted(_VERBS.glob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if {"add_arguments", "run"} <= functions:
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else ConfigError.code
    if argv[0] == "--version":
        print(f"segjax {__version__}")
        return 0
    name = argv[0]
    known = verbs()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"unknown verb {name!r}: {hint}")
    module = importlib.import_module(f"segjax.verbs.{name.replace('-', '_')}")
    return int(module.run(_parse(name, module, argv[1:])) or 0)


def _parse(name: str, module, argv: list[str]) -> argparse.Namespace:
    """The verb's flags, with the config loaded. ConfigError for an unknown flag, naming the nearest known one."""
    about = {"description": module.__doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(prog=f"segjax {name}", allow_abbrev=False, **about)
    module.add_arguments(parser)
    if hasattr(module, "startup"):
        _add_processes(parser)
    argv, overrides = _split_overrides(argv)
    args, rest = parser.parse_known_args(argv)
    for token in rest:
        options = _options(parser, argv)
        close = difflib.get_close_matches(token.split("=")[0], options, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `segjax {name} --help`"
        raise ConfigError(f"segjax {name}: unknown argument {token!r}: {hint}")
    if overrides and not getattr(args, "config", None):
        raise ConfigError(f"{overrides[0]}: there is no --config=FILE.py that it could change")
    if getattr(args, "config", None):
        from segjax.verbs import config_file

        args.config_file, args.config_overrides = args.config, overrides
        args.config = config_file.load(args.config, overrides)
    return args


def _add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags of a verb that works in many processes."""
    group = parser.add_argument_group("many processes, the same command in each (docs/pods.md)")
    group.add_argument("--distributed", action="store_const", const="1", default="", help="SLURM, Cloud TPU or Kubernetes tells which")
    group.add_argument("--coordinator", default="", metavar="HOST:PORT", help="else: where process 0 runs, and a free port there")
    group.add_argument("--processes", default="", metavar="N", help="how many")
    group.add_argument("--process-id", default="", metavar="I", help="which of them this one is, from 0")


def _options(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Every flag of a parser and of the sub-parser that argv chose."""
    found = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            found += [option for name in argv if name in action.choices for option in _options(action.choices[name], argv)]
    return found


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.key=value`, `--config.key value` and `--noconfig.flag` out of the arguments, as `--config.key=value` each."""
    plain, overrides, i = [], [], 0
    while i < len(argv):
        token = argv[i]
        if token.startswith(("--config.", "--noconfig.")):
            if "=" not in token and token.startswith("--config.") and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
                i += 1
                token = f"{token}={argv[i]}"
            overrides.append(token)
        else:
            plain.append(token)
        i += 1
    return plain, overrides


def _help() -> str:
    known = verbs()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {text}" for name, text in known.items()]
    return "\n".join(
        [
            "usage: segjax VERB --config=FILE.py[:ARG] [--config.key=value ...] --workdir=DIR",
            "",
            "Semantic segmentation across domains in JAX. Verbs (`segjax VERB --help` for the flags of one):",
            *lines,
            "",
            f"Exit codes: {EXIT_CODES}.",
        ]
    )
