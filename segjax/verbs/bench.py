"""Measure a workload or a config's training step here, beside torch if wanted, or compile the step for a TPU slice that is not here.

    segjax bench --workload=fda,enet_train --against=torch
    segjax bench --config=configs/quickstart.py --stage=fda
    segjax bench --config=configs/fda.py --stage=fda --topology=v5e:16x16 --mesh=data=16,fsdp=16

First the numbers must agree with a plain form of the same; then the two sides take turns. Prints a table and, with --out, appends one JSON
object a row. A compiled-for row (--topology) is no measurement: see docs/throughput.md.
"""

import argparse
import json
import os
import pathlib
from typing import Any

from segjax.errors import ConfigError
from segjax.verbs import (
    bench_ceilings,
    bench_measure,
    bench_peer,
    bench_plot,
    bench_profile,
    bench_versions,
    startup,
    workloads,
)


def add_arguments(parser: argparse.ArgumentParser):
    text = f"measure these: {', '.join(workloads.names())}, or package.module:make of your own"
    parser.add_argument("--workload", default="", metavar="NAME,...", help=text)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a size of the workload, e.g. --set height=512")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="measure, or compile, the training step of a stage of this config")
    parser.add_argument("--stage", default="", metavar="NAME", help="which of the config's stages (may be left out when one is trained)")
    parser.add_argument(
        "--topology", default="", metavar="KIND:SIZE", help="compile for this TPU slice: v5e:2x2, v5e:16x16, v6e:16x16, ..."
    )
    parser.add_argument("--mesh", default="", metavar="data=N,fsdp=M", help="default: every device on data")
    parser.add_argument("--per-device", type=int, default=0, metavar="N", help="a config's source rows a device (default: its batch_size)")
    parser.add_argument("--against", default="", choices=["torch"], help="the same work in torch, in turn (from a checkout of segjax)")
    parser.add_argument("--peer-python", default="", metavar="PATH", help="the Python that has torch (default: this one)")
    parser.add_argument("--chunks", type=int, default=20, metavar="N", help="looks at the clock for each side")
    text = "share of the chip's peak that the step-time model of --topology assumes for products (default 1: the floor)"
    parser.add_argument("--efficiency", type=float, default=1.0, metavar="SHARE", help=text)
    text = "how hard the compiler of --topology tries; O1 says in a quarter of the time whether a step fits (default: as training)"
    parser.add_argument("--optimization", default="", choices=["O0", "O1", "O2", "O3"], help=text)
    text = "for a short loan of a machine: torch gets ready while we compile, once, and its answer is the only check of the numbers"
    parser.add_argument("--quick", action="store_true", help=text)
    parser.add_argument("--profile", action="store_true", help="trace some more steps and say which operations take their time")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.jsonl", help="append the rows to this file")
    parser.add_argument("--show", type=pathlib.Path, metavar="FILE.jsonl", help="only print the rows of this file as tables")
    parser.add_argument("--plot", type=pathlib.Path, metavar="FILE.svg", help="draw the measured rows under their ceilings")


def run(args: argparse.Namespace) -> int:
    if args.show:
        return _show(args.show)
    _check(args)
    startup.one_process("bench", args, _ONE_HOST)
    if args.against:
        bench_peer.available(args.peer_python)
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # one card, two processes
    startup.begin(args)
    if args.topology:
        from segjax.verbs import bench_topology  # the data pipeline, whose packages a workload does not need

        options = {key: getattr(args, key) for key in ("mesh", "per_device", "efficiency", "optimization")}
        row = bench_topology.row(args.config, args.stage, args.topology, **options) | {"config": args.config_file}
        _write(args.out, row)
        print(bench_topology.table(row))
        return 0
    mesh, rows, ceilings = bench_measure.make_mesh(args.mesh), [], {}
    for name, workload in _chosen(args, mesh.size):
        if workload.dtype not in ceilings:
            ceilings[workload.dtype] = bench_ceilings.measure(mesh, workload.dtype)
        ceiling = ceilings[workload.dtype]
        options = {"against": args.against, "python": args.peer_python, "quick": args.quick, "profile": args.profile}
        row = bench_measure.row(name, workload, mesh, ceiling, chunks=args.chunks, **options)
        row |= {"config": args.config_file} if args.config else {}
        _write(args.out, row)
        rows.append(row)
        print(bench_measure.table([row]), flush=True)
        if args.profile:
            print(bench_profile.table(row["profile"]), flush=True)
    if len(rows) > 1:
        print(bench_measure.table(rows))
    if args.plot:
        bench_plot.write(args.plot, rows)
        print(f"{args.plot}: roofline")
    return 0


_ONE_HOST = (
    "start it on one host (the rate of many is images_per_s in the metrics.jsonl of `segjax train`, and --topology compiles for a slice)"
)


def _show(path: pathlib.Path) -> int:
    """The rows of a file, measured ones and compiled ones apart. ConfigError: no such file, or no rows of this verb in it."""
    from segjax.verbs import bench_topology  # as above

    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--show={path}: {' '.join(str(error).split())}: expected rows that --out wrote") from None
    tables = {"measured": bench_measure.table, "topology": bench_topology.summary}
    chosen = {kind: [row for row in rows if isinstance(row, dict) and row.get("kind") == kind] for kind in tables}
    if not any(chosen.values()):
        raise ConfigError(f"--show={path}: no row of `segjax bench` in {len(rows)} lines: expected rows that --out wrote")
    print("\n\n".join(tables[kind](found) for kind, found in chosen.items() if found))
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.per_device < 0 or args.chunks < 2 or not 0 < args.efficiency <= 1:
        expected = "expected 0 or more rows, 2 or more chunks and a share above 0 and up to 1"
        raise ConfigError(f"--per-device={args.per_device} --chunks={args.chunks} --efficiency={args.efficiency}: {expected}")
    if bool(args.workload) == bool(args.config):
        raise ConfigError("pass one of --workload=NAME,... and --config=FILE.py")
    if args.topology and not args.config:
        raise ConfigError("--topology compiles the step of a config: pass --config=FILE.py")
    if args.optimization and not args.topology:
        raise ConfigError(f"--optimization={args.optimization} is of --topology: what is measured is compiled as training compiles it")
    if args.set and (args.config or "," in args.workload):
        raise ConfigError("--set changes a size of one workload: pass one --workload; a config is changed by --config.key=value")


def _chosen(args: argparse.Namespace, devices: int):
    """(name, Workload) of each row to come, made one after the other."""
    if args.config:
        yield bench_measure.of_stage(args.config, args.stage, args.per_device, devices)
        return
    for name in args.workload.split(","):
        yield name, workloads.build(name, devices, workloads.read_sizes(args.set))


def _write(out: pathlib.Path | None, row: dict[str, Any]) -> None:
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(row | bench_versions.versions()) + "\n")
    print(f"{out}: one row more")
