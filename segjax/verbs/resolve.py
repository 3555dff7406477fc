"""Import strings and their arguments: `{"make": "package.module:name", **keyword arguments}` to the object that it names."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from segjax.errors import ConfigError

_LINEN = ("parent", "name")  # every Linen module's own fields, no business of a config


def plain(value: Any) -> Any:
    """A ConfigDict as nested dicts and tuples, references resolved."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return tuple(plain(part) for part in value) if isinstance(value, list | tuple) else value


def resolve(spec: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Calls what `spec["make"]` names with the other keys and `extra`. ConfigError: no such module or name, a keyword it does not take."""
    if "make" not in spec:
        raise ConfigError(f"{where} has no `make`: expected make='package.module:name', got keys {', '.join(spec) or 'none'}")
    function = import_string(spec["make"], where)
    return call(function, {**{key: value for key, value in spec.items() if key != "make"}, **extra}, where)


def import_string(text: str, where: str) -> Callable:
    """`package.module:name` -> the object. ConfigError names the nearest name that the module has."""
    module_name, colon, name = str(text).partition(":")
    if not colon or not name:
        raise ConfigError(f"{where}.make={text!r}: expected 'package.module:name', e.g. 'segjax.methods.fda:make'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}.make={text!r}: there is no module {error.name!r} (is its folder on PYTHONPATH?)") from None
    except ImportError as error:
        raise ConfigError(f"{where}.make={text!r}: {module_name} does not import: {error}") from None
    if not hasattr(module, name):
        raise ConfigError(f"{where}.make={text!r}: {module_name} has no {name!r}: {nearest(name, vars(module))}")
    return getattr(module, name)


def call(function: Callable, arguments: Mapping[str, Any], where: str) -> Any:
    """function(**arguments), where a keyword that it does not take or lacks is a ConfigError with the nearest one."""
    parameters = inspect.signature(function).parameters
    known = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in _LINEN]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in arguments:
            if key not in known:
                raise ConfigError(f"{where}.{key}: {function.__name__} takes no such argument: {nearest(key, known)}")
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if missing:
        raise ConfigError(f"{where}: {function.__name__} needs {', '.join(missing)}, which the config does not give")
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        stray = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if stray and stray[1] in arguments:
            hint = nearest(stray[1], _taken(function))
            raise ConfigError(f"{where}.{stray[1]}: {function.__name__} takes no such argument: {hint}") from error
        raise ConfigError(f"{where}: {function.__name__}: {' '.join(str(error).split())}") from error


def _taken(function: Callable) -> list[str]:
    """The keywords of a function, and those of the bases that a class with `**keywords` hands them on to."""
    parameters = inspect.signature(function).parameters
    taken = [name for name, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    onward = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    bases = [base for base in getattr(function, "__bases__", ()) if base is not object] if onward else []
    return taken + [name for base in bases for name in _taken(base)]


def nearest(name: str, known) -> str:
    """The part of a message that says what was meant: the closest known name, and the known ones."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known[:20]) or 'none'}"
