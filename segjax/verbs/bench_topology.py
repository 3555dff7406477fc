"""`segjax bench --topology`: a stage's whole training step compiled for a TPU slice that is not here, and what the program says."""

import pathlib
import re
import tempfile
import time
from typing import Any

import jax

from segjax.errors import SegjaxError
from segjax.runtime import chips, hlo, hlo_text, topology, vmem
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import compile_step
from segjax.verbs import bench_shapes, bench_step, text_table

_SIZE = r"\(?([\d.]+)([KMGT])\)?"
_USED = re.compile(rf"{_SIZE} (?:of|exceeds available HBM) {_SIZE}")
"""How the compiler says what a program needs and what there is."""


def row(
    config, stage_name: str, name: str, *, mesh: str = "", per_device: int = 0, efficiency: float = 1.0, optimization: str = ""
) -> dict[str, Any]:
    """One JSON object: what the compiled step of a stage says about a slice. Compiles for minutes where the network is deep.

    mesh: "data=16,fsdp=16", default every chip on `data`. per_device: source rows a chip, default the stage's batch_size. efficiency:
    share of the peak that products reach, an assumption of the step-time model alone. optimization: how hard the compiler tries, "O0" to
    "O3" (`jax_optimization_level`), default as training has it, its own choice; the row's is None where it chose.
    """
    before = jax.config.jax_optimization_level  # pyright: ignore[reportAttributeAccessIssue]  # jax adds options at run time
    jax.config.update("jax_optimization_level", level := optimization or before)
    try:
        found = _row(config, stage_name, name, mesh, per_device, efficiency)
    finally:
        jax.config.update("jax_optimization_level", before)
    return found | {"optimization": None if level == "UNKNOWN" else level}


def _row(config, stage_name: str, name: str, mesh: str, per_device: int, efficiency: float) -> dict[str, Any]:
    chip, axes = topology.chip(name), bench_shapes.parse_mesh(mesh)
    where = meshes.make_mesh(axes.get("data", -1), axes.get("fsdp", 1), devices=topology.devices(name))
    begun = time.process_time()
    step = bench_step.of_stage(config, stage_name, where, per_device)
    found = {"kind": "topology", **step.about, "topology": name, "devices": where.size, "mesh": dict(where.shape)}
    found["compiler_options"] = vmem.options(where)
    with tempfile.TemporaryDirectory(prefix="segjax-") as folder:
        try:
            compiled, report = compile_step(step.method, step.state, step.frozen, step.batch, where, {"xla_dump_to": folder})
        except SegjaxError as error:
            if not (used := _USED.search(str(error.__cause__ or error))):
                raise
            bytes_used, limit = (float(used[i]) * 1024 ** ("KMGT".index(used[i + 1]) + 1) for i in (1, 3))
            return {**found, "fits": False, "peak_bytes": bytes_used, "limit_bytes": limit, "cpu_seconds": time.process_time() - begun}
        totals = hlo.count(hlo_text.parse(_text(compiled, pathlib.Path(folder))))
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    model = chips.step_time(totals, chip, efficiency)
    memory = {key: getattr(report, key) for key in ("argument_bytes", "temp_bytes", "output_bytes", "alias_bytes", "peak_bytes")}
    return {
        **found,
        "fits": (report.peak_bytes or 0) <= chip.memory,
        **memory,
        "limit_bytes": chip.memory,
        "collectives": [
            {"kind": kind, "group": group, "executions": totals.executions[kind, group], "bytes": size}
            for (kind, group), size in sorted(totals.moved.items())
        ],
        "flops": {"analytic": report.flops / where.size, "program": totals.flops, "cost_analysis": costs.get("flops")},
        "bytes": {"program": totals.bytes, "cost_analysis": costs.get("bytes accessed")},
        "estimated_cycles": totals.cycles,
        "unknown_loops": totals.unknown_loops,
        "model": {
            "compute_s": model.compute,
            "memory_s": model.memory,
            "collectives_s": model.collectives,
            "step_s": model.apart,
            "step_overlapped_s": model.overlapped,
            "scaling": model.scaling,
            "inputs": {**chip._asdict(), "efficiency": efficiency, "source": chips.SOURCE},
        },
        "trace_seconds": report.trace_seconds,
        "compile_seconds": report.compile_seconds,
        "cpu_seconds": time.process_time() - begun,
    }


def _text(compiled: jax.stages.Compiled, dumped: pathlib.Path) -> str:
    """The optimized program: as jax prints it, else as the compiler wrote it down (libtpu 0.0.52 has programs that it cannot print)."""
    try:
        return compiled.as_text() or ""
    except jax.errors.JaxRuntimeError:
        if not (files := sorted(dumped.glob("*.jit_step.*after_optimizations.txt"))):
            raise
        return files[-1].read_text(encoding="utf-8")


def table(row: dict[str, Any]) -> str:
    """The row in words."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items())
    size = lambda count: "?" if count is None else f"{count / 1e9:,.3f} GB"
    work = f"{row['stage']}: {row['rows_each']} rows a chip of {_crop(row['crop'])}, {row['dtype']}"
    head = f"{row['topology']} ({row['devices']} chips, {mesh}), {work}"
    verdict = f"{'fits' if row['fits'] else 'DOES NOT FIT'}: {size(row['peak_bytes'])} of {size(row['limit_bytes'])} a chip"
    if "flops" not in row:
        return f"{head}\n{verdict}"
    memory = ", ".join(f"{size(row[f'{key}_bytes'])} {word}" for key, word in _MEMORY.items())
    groups = [[c["kind"], str(c["group"]), f"{c['executions']:g}", f"{c['bytes'] / 1e6:,.1f}"] for c in row["collectives"]]
    collectives = text_table.table(["collective", "among", "times a step", "MB a step"], groups) if groups else "no collectives"
    flops, model = row["flops"], row["model"]
    lines = [
        head,
        f"{verdict} ({memory})",
        collectives,
        f"{flops['program'] / 1e9:,.1f} GFLOP a chip in the program, {flops['analytic'] / 1e9:,.1f} by the formulas "
        f"({(flops['cost_analysis'] or 0) / 1e9:,.1f} by XLA's count, loop bodies once); {size(row['bytes']['program'])} to and from HBM",
        f"modelled at {100 * model['inputs']['efficiency']:.0f} % of peak: {1e3 * model['step_s']:.1f} ms a step with collectives apart "
        f"({1e3 * model['compute_s']:.1f} products, {1e3 * model['memory_s']:.1f} HBM, {1e3 * model['collectives_s']:.2f} collectives), "
        f"{1e3 * model['step_overlapped_s']:.1f} ms overlapped; {100 * model['scaling']:.1f} % weak scaling",
        f"traced in {row['trace_seconds']:.0f} s, compiled in {row['compile_seconds']:.0f} s ({row['cpu_seconds']:.0f} CPU-s{_at(row)})",
    ]
    return "\n".join(lines)


_MEMORY = {"argument": "arguments", "temp": "temporary", "output": "outputs", "alias": "of them aliased"}


def summary(rows: list[dict[str, Any]]) -> str:
    """A line a row: what docs/throughput.md shows of a file of rows."""
    header = ["step", "slice", "mesh", "GB a chip", "arguments + temporary", "collectives a step", "GFLOP a chip", "ms modelled", "CPU-s"]
    lines = []
    for row in rows:
        mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items() if size > 1)
        cells = [f"{row['stage']}, {row['rows_each']} a chip, {row['dtype']}", row["topology"], mesh]
        cells.append(f"{row['peak_bytes'] / 1e9:.2f} of {row['limit_bytes'] / 1e9:.0f}{'' if row['fits'] else ': does not fit'}")
        if "flops" not in row:
            lines.append([*cells, "", "", "", "", f"{row['cpu_seconds']:.0f}{_at(row)}"])
            continue
        moved = [f"{c['executions']:g} {c['kind']} ({c['group']}) {c['bytes'] / 1e6:,.0f} MB" for c in row["collectives"]]
        cells += [f"{row['argument_bytes'] / 1e9:.2f} + {row['temp_bytes'] / 1e9:.2f}", "; ".join(moved) or "none"]
        model = row["model"]
        cells += [f"{row['flops']['program'] / 1e9:,.0f}", f"{1e3 * model['step_overlapped_s']:.1f} to {1e3 * model['step_s']:.1f}"]
        lines.append([*cells, f"{row['cpu_seconds']:.0f}{_at(row)}"])
    return text_table.table(header, lines)


def _at(row: dict[str, Any]) -> str:
    """What of the compiler's choices was not training's; rows of before may lack either."""
    level, flags = row.get("optimization"), row.get("libtpu_init_args")
    return (f" at {level}" if level else "") + (f" with {flags}" if flags else "")


def _crop(crop: Any) -> str:
    return "x".join(map(str, crop)) if isinstance(crop, list | tuple) else str(crop)
