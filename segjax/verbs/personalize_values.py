"""The values of a personalize stage, which are the verb's flags as well: what may be left out, and what is wrong with them."""

import argparse
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import ConfigError
from segjax.verbs import build, stages
from segjax.verbs.resolve import nearest

OPTIMIZER: dict[str, Any] = {
    "name": "adamw",
    "lr": 5e-6,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "clip_norm": 1.0,
    "schedule": "constant",
}
DEFAULTS: dict[str, Any] = {
    "model": "",
    "image": "",
    "index": 0,
    "prompt": "a photo of a sks urban scene",
    "class_prompt": "",
    "class_images": "",
    "class_count": 200,
    "prior_weight": 1.0,
    "short_side": 1024,
    "crop": None,
    "steps": 1000,
    "batch_size": 1,
    "accumulate": 1,
    "export_every": 200,
    "train_text": True,
    "lora_rank": 0,
    "lora_alpha": None,
    "cache": 0,
    "remat": False,
    "dtype": "auto",
    "variant": "",
    "optimizer": OPTIMIZER,
    "seed": 0,
    "mesh": {},
    "sharding": (),
    "checkpoint_every": 200,
    "keep": 2,
    "log_every": 50,
}
"""Keys that a stage may leave out (all but `model` and `image`), and what they are then: DATUM's, as its train_dreambooth.py has them."""
FLAGS = tuple(key for key in DEFAULTS if key not in ("index", "optimizer", "mesh", "sharding", "keep"))
"""Keys that are flags of the verb as they are."""
_AT_LEAST = {"index": 0, "class_count": 1, "short_side": 0, "crop": 1, "steps": 1, "batch_size": 1, "accumulate": 1, "export_every": 1}
_AT_LEAST |= {"lora_rank": 0, "cache": 0, "seed": 0, "checkpoint_every": 1, "keep": 1, "log_every": 1}


def of_stage(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's values with what it leaves out; its seed is the config's unless it has one. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    for key in spec:
        if key not in ("verb", *DEFAULTS):
            raise ConfigError(f"{where}.{key}: a personalize stage has no such key: {nearest(key, DEFAULTS)}")
    return completed({"seed": build.seed(config), **{key: value for key, value in spec.items() if key != "verb"}}, f"{where}.")


def of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as a stage's values. ConfigError."""
    mesh = {"fsdp": args.fsdp} | ({} if args.devices < 0 else {"data": max(args.devices // max(args.fsdp, 1), 1)})
    spec = {key: getattr(args, key) for key in FLAGS}
    return completed({**spec, "mesh": mesh, "optimizer": {"lr": args.lr}}, "--")


def named(where: str, key: str) -> str:
    """A key in a message: a flag, or a value of a stage."""
    return f"{where}{key.replace('_', '-') if where == '--' else key}"


def completed(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With defaults. where: what precedes a key in a message. ConfigError: what cannot be."""
    spec = {**DEFAULTS, **spec}
    spec["optimizer"] = {**OPTIMIZER, **spec["optimizer"]}
    flag = functools.partial(named, where)
    if not spec["model"]:
        raise ConfigError(f"{flag('model')}={spec['model']!r}: expected a Stable Diffusion directory in diffusers' layout")
    if not isinstance(spec["image"], str | Mapping) or not spec["image"]:
        raise ConfigError(f"{flag('image')}={spec['image']!r}: expected the target image, a file (in a config, or a data set)")
    for key, least in _AT_LEAST.items():
        value = spec[key]
        if not (value is None and DEFAULTS[key] is None) and (
            not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31
        ):
            raise ConfigError(f"{flag(key)}={value!r}: expected a whole number, {least} or more, below 2^31")
    if spec["class_images"] and not spec["class_prompt"]:
        raise ConfigError(f"{flag('class_images')}: say what they show with {flag('class_prompt')}, e.g. 'a photo of an urban scene'")
    if spec["batch_size"] % spec["accumulate"]:
        raise ConfigError(f"{flag('accumulate')}={spec['accumulate']} does not divide {flag('batch_size')}={spec['batch_size']}")
    for key in ("prompt", "class_prompt"):
        if not isinstance(spec[key], str):
            raise ConfigError(f"{flag(key)}={spec[key]!r}: expected text")
    return spec
