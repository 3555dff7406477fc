"""Parameters, operations and bytes of a stage's training step by module: what is large, what is dear. Needs no data, weights or device.

    segjax analyze --config=configs/fda.py --stage=fda --depth=2

GFLOP are those of products and convolutions in one step over the whole batch, loops times their length; MB are what these read and
write, each operand and result once, nothing kept in a cache. The backward pass holds what belongs to the gradient, recomputation too.
"""

import argparse
import json
import re
from typing import Any

import jax

from segjax.errors import ConfigError
from segjax.runtime import modules
from segjax.verbs import bench_shapes, scores, startup, variables
from segjax.weights import safetensors_io

ELSEWHERE = "(no module)"


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]")
    parser.add_argument("--stage", default="", metavar="NAME", help="which of the config's stages (may be left out when one is trained)")
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="how many levels of modules make a line (default 2)")
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="source rows of the batch (default: the stage's batch_size)")
    parser.add_argument("--json", action="store_true", help="one JSON object a module instead of the table")


def run(args: argparse.Namespace) -> int:
    if args.depth < 1 or args.rows < 0:
        raise ConfigError(f"--depth={args.depth} --rows={args.rows}: expected 1 or more levels and 0 or more rows")
    startup.one_process("analyze", args, "start it once")
    startup.begin(args)
    found = analyze(args.config, args.stage, depth=args.depth, rows=args.rows)
    print("\n".join(json.dumps(each) for each in found) if args.json else table(found))
    return 0


def analyze(config, stage_name: str = "", *, depth: int = 2, rows: int = 0) -> list[dict[str, Any]]:
    """One dict a module, {"module", "parameters", "forward_flops", "backward_flops", "bytes"}, in the order of the trace."""
    stage = bench_shapes.stage_of(config, stage_name)
    batch = bench_shapes.batch(stage, rows or stage.spec["batch_size"])
    state = jax.eval_shape(stage.method.init, jax.random.key(0), batch)
    shares = modules.by_module(jax.jit(stage.method.step).trace(state, bench_shapes.frozen_weights(config, stage), batch).jaxpr)
    names = _parameters(stage.model)
    found: dict[str, dict[str, Any]] = {}
    for path, share in shares.items():
        one = found.setdefault(_line(path, names, depth), _empty())
        one["forward_flops"] += share.forward
        one["backward_flops"] += share.backward
        one["bytes"] += share.bytes
    for path, count in names.items():
        found.setdefault("/".join(path.split("/")[:depth]), _empty())["parameters"] += count
    return [{"module": name, **each} for name, each in found.items()]


def _parameters(model: Any) -> dict[str, int]:
    """Path of each module that has parameters of its own -> how many numbers they are."""
    found: dict[str, int] = {}
    for name, leaf in safetensors_io.flatten(variables.shapes(model)["params"]).items():
        path = name.rpartition("/")[0]
        found[path] = found.get(path, 0) + leaf.size
    return found


def _line(path: str, names: dict[str, int], depth: int) -> str:
    """The line that a scope belongs to: its path as the parameters have it, from the first part that begins one."""
    first = {name.split("/")[0] for name in names}
    parts = path.split("/")
    begin = next((n for n, part in enumerate(parts) if part in first), None)
    if begin is None:
        return parts[0] if re.fullmatch(r"[A-Z]\w*", parts[0]) else ELSEWHERE
    return "/".join(parts[begin : begin + depth])


def _empty() -> dict[str, Any]:
    return {"parameters": 0, "forward_flops": 0.0, "backward_flops": 0.0, "bytes": 0.0}


def table(found: list[dict[str, Any]]) -> str:
    """A line a module and one of the sums."""
    keys = ("parameters", "forward_flops", "backward_flops", "bytes")
    total = {"module": "total", **{key: sum(each[key] for each in found) for key in keys}}
    work = max(total["forward_flops"] + total["backward_flops"], 1.0)
    rows = []
    for each in (*found, total):
        share = 100 * (each["forward_flops"] + each["backward_flops"]) / work
        flops = [f"{each[key] / 1e9:,.2f}" for key in ("forward_flops", "backward_flops")]
        rows.append([each["module"], f"{each['parameters']:,}", *flops, f"{share:.1f}", f"{each['bytes'] / 1e6:,.1f}"])
    return scores.table(["module", "parameters", "forward GFLOP", "backward GFLOP", "% of GFLOP", "MB of products"], rows)
