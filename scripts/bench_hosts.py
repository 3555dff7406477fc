"""Steps of DACS, DAFormer, HRDA and MIC beside plain training of the same network, in one run: `python scripts/bench_hosts.py`.

A MiT of B0's widths with one block a stage, float32, the steps that `segjax train` compiles. A host does more work than plain training: its
teacher, the mixture, the frozen encoder; its step should take as much longer as it has more floating-point operations. Prints both
ratios and writes one JSON object a host. `over` is time ratio / FLOPs ratio.
"""

import argparse
import json
import os
import pathlib
import platform

import jax
import numpy as np
from bench_ops import ROOT, alternate

from segjax.methods import dacs, daformer, source_only
from segjax.nets.daformer import DAFormer
from segjax.nets.hrda import HRDA
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import compile_step
from segjax.runtime.optim import make_optimizer
from segjax.runtime.state import TrainState
from segjax.verbs.variables import shapes

MIT: dict = dict(variant="b0", depths=(1, 1, 1, 1), channels=64)
ONE, TWO = DAFormer(19, **MIT), HRDA(19, window=(64, 64), attention_channels=64, **MIT)
HOSTS = {
    "dacs": (ONE, dacs, {}),
    "daformer": (ONE, daformer, {"ignore_bottom": 24}),
    "mic over daformer": (ONE, daformer, {"mask_weight": 1.0, "mask_block": 8}),
    "hrda": (TWO, daformer, {"margins": True}),
    "mic over hrda": (TWO, daformer, {"margins": True, "mask_weight": 1.0, "mask_block": 8}),
}


def drawn(model) -> dict:
    """Variables by numpy: compiling a network's init would take longer than all that is timed here."""
    rng = np.random.default_rng(1)

    def leaf(path, x):
        unit = path[-1].key in ("scale", "var")
        return np.ones(x.shape, np.float32) if unit else rng.normal(0, 0.05, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, dict(shapes(model)))


def compiled(method, optimizer, variables: dict, batch: dict, frozen, ema: bool) -> tuple:
    """(call that steps on, FLOPs, compile seconds)"""
    mesh = meshes.make_mesh(1)
    whole = meshes.replicated(mesh)
    state = jax.device_put(
        TrainState.create(jax.random.key(0), variables, optimizer, ema=ema, predicts="student" if ema else "teacher"), whole
    )
    state = jax.tree.map(lambda leaf: leaf.copy(), state)
    spec = meshes.with_shardings(jax.eval_shape(lambda: state), jax.tree.map(lambda _: whole, state))
    step, report = compile_step(method, spec, frozen, meshes.batch_spec(batch, mesh), mesh)
    on_device, held = meshes.put_batch(batch, mesh), {"state": state}

    def call():
        held["state"], metrics = step(held["state"], frozen, on_device)
        return metrics["loss/ce"]

    return call, report.flops, report.compile_seconds


def case(name: str, args) -> dict:
    model, module, options = HOSTS[name]
    rng = np.random.default_rng(0)
    image = lambda: rng.integers(0, 256, (args.batch, args.side, args.side, 3)).astype(np.uint8)
    label = rng.integers(0, 19, (args.batch, args.side // 16, args.side // 16)).repeat(16, 1).repeat(16, 2).astype(np.uint8)
    batch = {"source_image": image(), "source_label": label, "target_image": image(), "target_label": label * 0}
    optimizer, variables = make_optimizer(name="adamw", lr=6e-5, weight_decay=0.01, schedule="constant"), drawn(model)
    frozen = () if module is dacs else jax.device_put({"imagenet": drawn(model)}, meshes.replicated(meshes.make_mesh(1)))
    plain, host = (make.make(model=model, optimizer=optimizer, **own) for make, own in ((source_only, {}), (module, options)))
    parts = {
        "plain": compiled(plain, optimizer, variables, batch, (), ema=False),
        "host": compiled(host, optimizer, variables, batch, frozen, ema=True),
    }
    ms = alternate({form: (call, jax.block_until_ready) for form, (call, _, _) in parts.items()}, args.repeats, 1)
    more = parts["host"][1] / parts["plain"][1]
    return {
        "case": f"{name} {args.batch}x{args.side}x{args.side} float32",
        "median_ms": ms,
        "times_plain": round(ms["host"] / ms["plain"], 3),
        "flops_times_plain": round(more, 3),
        "over": round(ms["host"] / ms["plain"] / more, 3),
        "gflop": {form: round(flops / 1e9, 3) for form, (_, flops, _) in parts.items()},
        "compile_s": {form: round(seconds, 1) for form, (_, _, seconds) in parts.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", nargs="*", choices=list(HOSTS), default=list(HOSTS))
    parser.add_argument("--side", type=int, default=128, help="of a crop; HRDA's windows are of 64")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"hosts-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    about = {"backend": jax.default_backend(), "repeats": args.repeats, "jax": jax.__version__}
    about |= {"python": platform.python_version(), "cores": os.cpu_count()}
    rows = []
    for name in args.hosts:
        rows.append(case(name, args) | about)
        row = rows[-1]
        print(f"{row['case']}: {row['times_plain']}x the time and {row['flops_times_plain']}x the FLOPs of plain training", flush=True)
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))  # after each: compiling one takes minutes
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
