"""`config show`: the resolved config as JSON, after variants and overrides; nothing is built and no device is touched."""

import argparse
import json

from segjax.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("action", choices=["show"], help="show: print the resolved config")
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--key", default="", metavar="A.B", help="only this part, e.g. stages.fda.optimizer")


def run(args: argparse.Namespace) -> int:
    """Prints JSON with the config's own order of keys. ConfigError for an unknown --key."""
    value = json.loads(args.config.to_json(sort_keys=False))
    walked = "config"
    for key in filter(None, args.key.split(".")):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else "none, it is a value"
            raise ConfigError(f"--key={args.key}: no key {key!r} in {walked}; known: {known}")
        value, walked = value[key], f"{walked}.{key}"
    print(json.dumps(value, indent=2))
    return 0
