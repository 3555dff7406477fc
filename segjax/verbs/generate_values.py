"""The values of a generate stage, which are the verb's flags as well: what may be left out, and what is wrong with them."""

import argparse
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import ConfigError
from segjax.generation import prompt_plans, prompts
from segjax.verbs import build, stages
from segjax.verbs.arguments import parse_size
from segjax.verbs.resolve import nearest

DEFAULTS: dict[str, Any] = {
    "model": "",
    "prompts": "",
    "plan": "",
    "token": "sks",
    "count": None,
    "steps": 50,
    "guidance": 7.5,
    "negative": "",
    "sampler": "",
    "size": None,
    "seed": 0,
    "batch": None,
    "unit": 1,
    "dtype": "auto",
    "variant": "",
    "devices": -1,
}
"""Keys that a stage may leave out (all but `model`, and one of `prompts` and `plan`), and what they are then. size: (height, width)."""
NEUTRAL = ("batch", "devices")
"""Keys that change how the images come and not which."""
_AT_LEAST = {"count": 1, "batch": 1, "unit": 1, "seed": 0}


def of_stage(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's values with what it leaves out; its seed is the config's unless it has one. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    for key in spec:
        if key not in ("verb", *DEFAULTS):
            raise ConfigError(f"{where}.{key}: a generate stage has no such key: {nearest(key, DEFAULTS)}")
    return completed({"seed": build.seed(config), **{key: value for key, value in spec.items() if key != "verb"}}, f"{where}.")


def of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as a stage's values. ConfigError."""
    size = parse_size(args.size)
    return completed({**{key: getattr(args, key) for key in DEFAULTS}, "size": size and size[::-1]}, "--")


def completed(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With defaults. where: what precedes a key in a message. ConfigError: what cannot be."""
    spec = {**DEFAULTS, **spec}
    if not spec["model"]:
        raise ConfigError(f"{where}model={spec['model']!r}: expected a Stable Diffusion directory in diffusers' layout")
    if bool(spec["prompts"]) == bool(spec["plan"]):
        raise ConfigError(f"give either {where}prompts, a file, or {where}plan, one of {', '.join(prompt_plans.PLANS)}")
    for key, least in _AT_LEAST.items():
        value = spec[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31):
            raise ConfigError(f"{where}{key}={value}: expected {least} or more, below 2^31")
    if not isinstance(spec["guidance"], int | float) or not math.isfinite(spec["guidance"]):
        raise ConfigError(f"{where}guidance={spec['guidance']}: expected a number, e.g. 7.5")
    size = spec["size"]
    if size is not None and (len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)):
        raise ConfigError(f"{where}size={size!r}: expected (height, width) in pixels, e.g. (512, 512)")
    if spec["plan"]:
        prompt_plans.prompts(spec["plan"], spec["token"])
    return spec


def texts(spec: Mapping[str, Any]) -> list[prompts.Prompt]:
    """The prompts of a stage, from its plan or its file. DataError: no such file, no prompt in it."""
    return prompt_plans.prompts(spec["plan"], spec["token"]) if spec["plan"] else prompts.read(spec["prompts"])
