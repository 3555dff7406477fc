"""From `--config=FILE.py[:ARG] --config.key=value` to a locked ConfigDict (ml_collections' `config_flags` reads the values)."""

import difflib
import hashlib
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from segjax.errors import ConfigError


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of `FILE.py[:ARG]` with `--config.key=value` applied, locked. ConfigError names the file or key."""
    config = _get_config(spec)
    for override in overrides:
        _check_key(config, override)
    if not overrides:  # a flag writes its default down as text, twice, which takes longer than to make the config
        return config.lock()
    values = flags.FlagValues()  # private: absl's global flags would be parsed once a process only
    argv = ["segjax", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise ConfigError(f"{_one_line(error)}; the default is shown by `segjax config show --config={spec}`") from None
    loaded = values["config"].value
    assert isinstance(loaded, ConfigDict)
    return loaded.lock()


def _get_config(spec: str) -> ConfigDict:
    name, _, arg = spec.partition(":")
    path = pathlib.Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1) if path.parent.is_dir() else []
        hint = f"did you mean {path.parent / near[0]}?" if near else "pass the path of a config file, e.g. --config=configs/quickstart.py"
        raise ConfigError(f"--config={spec}: there is no file {name}: {hint}")
    get_config = _load_module(path, spec)
    try:
        takes_argument = bool(inspect.signature(get_config).parameters)
        if arg and not takes_argument:
            raise ConfigError(f"--config={spec}: {name} has no variants; leave out ':{arg}'")
        config = get_config(arg) if arg else get_config()
    except ValueError as error:
        raise ConfigError(f"--config={spec}: {_one_line(error)}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={spec}: get_config returned a {type(config).__name__}, expected an ml_collections.ConfigDict")
    return config


def _load_module(path: pathlib.Path, spec: str):
    """`get_config` of a config file. A config imports the files beside it by their plain names (`import base`)."""
    folder = str(path.resolve().parent)
    name = f"_segjax_config_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"--config={spec}: {path} is no Python file: expected FILE.py[:ARG], e.g. configs/quickstart.py")
    module = importlib.util.module_from_spec(module_spec)
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        module_spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise ConfigError(f"--config={spec}: {path} does not load: {_one_line(error)}") from None
    finally:
        sys.path.remove(folder)
        for other in set(sys.modules) - before:  # another folder's `base` must not be taken for this one's
            if (getattr(sys.modules[other], "__file__", None) or "").startswith(folder):
                del sys.modules[other]
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={spec}: {path} has no function get_config(arg)")
    return module.get_config


def _check_key(config: ConfigDict, override: str):
    """ConfigError when the key of `--config.a.b=value` does not exist, with the nearest one that does."""
    flag = override.split("=", 1)[0]
    keys = flag.removeprefix("--noconfig.").removeprefix("--config.").split(".")
    node: Any = config
    walked = "config"
    for key in keys:
        known = list(node.keys()) if isinstance(node, ConfigDict) else []
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{flag}: no key {key!r} in {walked}: {hint}known: {', '.join(known) or 'none, it is a value'}")
        node, walked = node[key], f"{walked}.{key}"
    if isinstance(node, ConfigDict):
        raise ConfigError(f"{flag}: is a group, set one of its keys: {', '.join(node.keys())}")
    value = override.partition("=")[2].lower()
    if isinstance(node, bool) and value not in ("", "true", "false", "0", "1", "yes", "no", "t", "f", "y", "n"):
        raise ConfigError(f"{override}: expected true or false")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
