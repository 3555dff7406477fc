"""Every public layout that segjax knows, found by looking: a module of this package that defines a `Public` has added it."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping

import numpy as np

from segjax import weights
from segjax.errors import WeightsError
from segjax.weights.engine import Public


@functools.cache
def known() -> dict[str, Public]:
    """Name -> layout, in alphabetical order."""
    found = {}
    for module in pkgutil.iter_modules(weights.__path__):
        for value in vars(importlib.import_module(f"{weights.__name__}.{module.name}")).values():
            if isinstance(value, Public):
                found[value.name] = value
    return dict(sorted(found.items()))


def recognise(source: Mapping[str, np.ndarray], name: str) -> Public:
    """The one layout that these keys belong to. WeightsError, which calls the file `name`, when none or several fit."""
    found = [public for public in known().values() if public.recognises(source)]
    if len(found) != 1:
        fit = f"{', '.join(public.name for public in found) or 'none'} of {', '.join(known())}"
        raise WeightsError(f"{name}: known layouts that fit its {len(source)} keys {sorted(source)[:10]}: {fit}: name one with --layout")
    return found[0]
