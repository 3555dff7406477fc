"""The values of a prompts stage, which are the verb's flags as well: what may be left out, and what is wrong with them."""

import argparse
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import ConfigError
from segjax.generation import captions
from segjax.generation.language import Sampling
from segjax.verbs import build, networks, stages, zero_shot
from segjax.verbs.resolve import nearest

SOURCES = ("model", "endpoint", "templates", "file")
ASKED = SOURCES[:2]
"""Those that are asked, the others are read."""
STREET = "street"
PROMPTS, MANIFEST = "prompts.jsonl", "manifest.json"
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(SOURCES, ""),
    "name": "",
    "key": "OPENAI_API_KEY",
    "send": {},
    "timeout": 120.0,
    "attempts": 6,
    "tokenizer": "",
    "dtype": "auto",
    "unit": 8,
    "mesh": {},
    "classes": "cityscapes19",
    "count": None,
    "instruction": captions.INSTRUCTION,
    "system": "",
    "plan": "all",
    "captions": 10,
    "requests": None,
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 0,
    "max_tokens": None,
    "seed": 0,
    "min_words": None,
    "max_words": 40,
}
"""Keys that a stage may leave out (all but one of `SOURCES`), and what they are then."""
NEUTRAL = ("key", "timeout", "attempts", "mesh", "requests")
"""Keys that change how the prompts come and not which."""
_AT_LEAST = {"count": 1, "captions": 1, "requests": 1, "max_tokens": 1, "seed": 0, "min_words": 1, "max_words": 1, "unit": 1, "attempts": 1}
_COUNT, _TOKENS_A_CAPTION = 100, 48


def of_stage(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's values with what it leaves out; its seed is the config's unless it has one. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    for key in spec:
        if key not in ("verb", *DEFAULTS):
            raise ConfigError(f"{where}.{key}: a prompts stage has no such key: {nearest(key, DEFAULTS)}")
    return completed({"seed": build.seed(config), **{key: value for key, value in spec.items() if key != "verb"}}, f"{where}.")


def of_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as a stage's values. ConfigError."""
    spec = {key: getattr(args, key) for key in DEFAULTS if hasattr(args, key)}
    mesh = {"data": -1 if args.devices < 0 else max(args.devices // max(args.fsdp, 1), 1), "fsdp": args.fsdp}
    return completed({**spec, "send": networks.settings(args.send), "mesh": mesh}, "--")


def completed(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """With defaults, also those that depend on other values; the instruction "@FILE" is that file's text, "" the default.

    where: what precedes a key in a message. ConfigError: what cannot be.
    """
    spec = {**DEFAULTS, **spec}
    spec["instruction"] = _instruction(spec["instruction"] or captions.INSTRUCTION, where)
    flag = lambda key: f"{where}{key.replace('_', '-') if where == '--' else key}"
    chosen = [key for key in SOURCES if spec[key]]
    if len(chosen) != 1:
        raise ConfigError(f"{' and '.join(map(flag, chosen)) or 'no source'}: give exactly one of {', '.join(map(flag, SOURCES))}")
    for key, least in _AT_LEAST.items():
        value = spec[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31):
            raise ConfigError(f"{flag(key)}={value!r}: expected a whole number, {least} or more, below 2^31")
    for key in ("temperature", "top_p", "timeout"):
        if not isinstance(spec[key], int | float) or not math.isfinite(spec[key]) or (key == "timeout" and spec[key] <= 0):
            raise ConfigError(f"{flag(key)}={spec[key]!r}: expected a {'positive ' if key == 'timeout' else ''}number")
    Sampling(spec["temperature"], spec["top_k"], spec["top_p"]).check()
    if spec["endpoint"] and not spec["name"]:
        raise ConfigError(f"{flag('endpoint')}: name its model with {flag('name')}")
    if chosen[0] in ASKED:
        spec["count"] = spec["count"] or _COUNT
        spec["max_tokens"] = spec["max_tokens"] or _TOKENS_A_CAPTION * spec["captions"]
        spec["requests"] = spec["requests"] or 3 * math.ceil(spec["count"] / spec["captions"]) + 3
        captions.request(0, spec["instruction"], names(spec), spec["plan"], spec["captions"])
    spec["min_words"] = spec["min_words"] or (3 if chosen[0] in ASKED else 1)
    if spec["min_words"] > spec["max_words"]:
        raise ConfigError(f"{flag('min_words')}={spec['min_words']} is more than {flag('max_words')}={spec['max_words']}")
    return spec


def _instruction(text: str, where: str) -> str:
    if not text.startswith("@"):
        return text
    path = pathlib.Path(text[1:])
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}instruction={text}: cannot be read as UTF-8 text ({error})") from None


def names(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that the prompts are about."""
    return zero_shot.classes(spec["classes"]).names


def is_asked(spec: Mapping[str, Any]) -> bool:
    """Whether a language model writes the prompts."""
    return any(spec[key] for key in ASKED)


def limits(spec: Mapping[str, Any]) -> captions.Limits:
    """Words of a prompt."""
    return captions.Limits(spec["min_words"], spec["max_words"])
