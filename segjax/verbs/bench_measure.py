"""`segjax bench` on the devices that are here: one workload's row, and the rows as a table."""

import contextlib
import statistics
from typing import Any

import jax
import numpy as np

from segjax.runtime import mesh as meshes
from segjax.runtime.log import say
from segjax.verbs import bench_peer, bench_profile, text_table
from segjax.verbs.bench_runner import Chunk, Runner, input_sets
from segjax.verbs.workloads import Workload, training


def row(
    name: str,
    workload: Workload,
    mesh: jax.sharding.Mesh,
    ceilings: dict[str, Any],
    *,
    chunks: int,
    against: str = "",
    python: str = "",
    quick: bool = False,
    profile: bool = False,
):
    """One JSON object. Order: numbers agree, or SegjaxError; warm-up until stable; `chunks` chunks of steps, in turn with the peer's.

    ceilings: `bench_ceilings.measure` of this run. against: "torch" or "". quick: the peer gets ready while we compile, which is once, and
    its answer is the only gate. profile: which operations take the time (`bench_profile`).
    """
    sets, lost = input_sets(workload), "this workload has no peer"
    with contextlib.ExitStack() as ending:
        meet = lambda: ending.enter_context(contextlib.closing(bench_peer.Peer(workload, sets, python)))
        wanted = bool(against and workload.peer)
        peer = meet() if wanted and quick else None
        say(f"{name}: compiling")
        runner = Runner(workload, mesh, sets, again=not quick)
        say(f"{name}: traced in {runner.times['trace_s']:.1f} s, compiled in {runner.times['compile_s']:.1f} s")
        gate = {} if peer else runner.gate()
        peer = peer or (meet() if wanted else None)
        try:
            if peer:
                peer.meet(runner)
                say(f"{name}: agrees with {against}, which is ready")
        except bench_peer.PeerEnded as error:
            peer, lost, gate = None, str(error), gate or runner.gate()
        count = runner.warm_up(4 if quick else 10)
        ours, theirs = _take_turns(runner, peer, chunks, count)
    program, report, devices = runner.program(), runner.report, mesh.size
    roofline = runner.work.seconds(devices * ceilings["matmul_flops"], devices * ceilings["copy_bytes"])
    wall = [chunk.wall for chunk in ours]
    p50, p90 = float(np.percentile(wall, 50)), float(np.percentile(wall, 90))
    found = {
        "kind": "measured",
        "workload": name,
        "sizes": dict(workload.sizes),
        "device": mesh.devices.flat[0].device_kind,
        "platform": mesh.devices.flat[0].platform,
        "mesh": dict(mesh.shape),
        "rows": workload.rows,
        "gate": gate,
        "ms": {"p50": 1e3 * p50, "p90": 1e3 * p90},
        "processor_ms": 1e3 * statistics.median(chunk.processor for chunk in ours),
        "noise": _noise(wall),
        "rows_a_second": workload.rows / p50,
        "rows_a_second_a_device": workload.rows / p50 / devices,
        "chunks": {"count": chunks, "steps": count, "input_sets": len(runner.sets)},
        "flops": {"analytic": runner.work.flops, "program_a_device": program.flops, "cost_analysis": _cost(runner.compiled, "flops")},
        "bytes": {"least": runner.work.bytes, "program_a_device": program.bytes, "cost_analysis": report.bytes_accessed},
        "ceilings": ceilings,
        "roofline_ms": 1e3 * roofline,
        "fraction_of_roofline": roofline / p50,
        "memory": {"temporary": report.temp_bytes, "arguments": report.argument_bytes, "step": report.peak_bytes, "peak": _peak(mesh)},
        "seconds": runner.times,
    }
    if against:
        found["against"] = _against(against, peer, ours, theirs) if peer else {"peer": against, "none": lost}
    if profile:
        found["profile"] = bench_profile.of(runner)
    return found


def of_stage(config, stage_name: str, per_device: int, devices: int) -> tuple[str, Workload]:
    """A config's stage as a workload: its step at its own shapes, random images and weights, no file opened but frozen weights."""
    from segjax.verbs import bench_shapes  # the data pipeline, whose packages a workload does not need

    stage = bench_shapes.stage_of(config, stage_name)
    rows = (per_device or max(stage.spec["batch_size"] // devices, 1)) * devices
    shapes = bench_shapes.batch(stage, rows)
    rng = np.random.default_rng(0)
    frozen = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32).astype(x.dtype), bench_shapes.frozen_weights(config, stage))
    about = bench_shapes.about(stage)
    classes = getattr(stage.model, "num_classes", 1)
    return stage.name, training.of_method(stage.method, frozen, shapes, classes=classes, sizes=about, dtype=about["dtype"])


def make_mesh(text: str) -> jax.sharding.Mesh:
    """The mesh of --mesh over the devices that are here."""
    if not text:
        return meshes.make_mesh()
    from segjax.verbs import bench_shapes  # as above

    axes = bench_shapes.parse_mesh(text)
    return meshes.make_mesh(axes.get("data", -1), axes.get("fsdp", 1))


def _take_turns(runner: Runner, peer: "bench_peer.Peer | None", chunks: int, count: int) -> tuple[list[Chunk], list[Chunk]]:
    """Our chunks and the peer's, A B, B A, A B, ..., so that a busy minute hits both alike."""
    ours: list[Chunk] = []
    theirs: list[Chunk] = []
    for turn in range(chunks):
        if peer is None:
            ours.append(runner.steps(count))
        elif turn % 2:
            theirs.append(peer.steps(count))
            ours.append(runner.steps(count))
        else:
            ours.append(runner.steps(count))
            theirs.append(peer.steps(count))
    return ours, theirs


def _against(name: str, peer: "bench_peer.Peer", ours: list[Chunk], theirs: list[Chunk]) -> dict[str, Any]:
    clock = bench_peer.ratio([chunk.wall for chunk in ours], [chunk.wall for chunk in theirs])
    processor = bench_peer.ratio([chunk.processor for chunk in ours], [chunk.processor for chunk in theirs])
    return {
        "peer": name,
        **peer.about,
        "gate": peer.gate,
        "ms": 1e3 * statistics.median(chunk.wall for chunk in theirs),
        "ratio": dict(zip(("times", "low", "high"), clock, strict=True)),
        "processor_ratio": dict(zip(("times", "low", "high"), processor, strict=True)),
    }


def _noise(wall: list[float]) -> float:
    """The ratio of the same code to itself: every second chunk against the others. What lies within it is no difference."""
    return statistics.median(wall[::2]) / statistics.median(wall[1::2]) if len(wall) > 1 else 1.0


def _cost(compiled, key: str) -> float | None:
    costs = compiled.cost_analysis() or {}
    return (costs[0] if isinstance(costs, list) else costs).get(key)


def _peak(mesh: jax.sharding.Mesh) -> int | None:
    stats = mesh.devices.flat[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use")


def table(rows: list[dict[str, Any]]) -> str:
    """A line a row: time, rate, share of the roofline, memory, compile times, and how many times our time the peer takes."""
    header = ["workload", "ms p50", "p90", "rows/s", "GFLOP", "roofline", "temporary MB", "trace + compile (cached) s", "torch takes"]
    lines = []
    for each in rows:
        seconds, temporary = each["seconds"], each["memory"]["temporary"]
        cached = f" ({seconds['compile_cached_s']:.1f})" if "compile_cached_s" in seconds else ""
        compiled = f"{seconds['trace_s']:.1f} + {seconds['compile_s']:.1f}{cached}"
        cells = [each["workload"], f"{each['ms']['p50']:.2f}", f"{each['ms']['p90']:.2f}", f"{each['rows_a_second']:,.2f}"]
        cells += [f"{each['flops']['analytic'] / 1e9:,.2f}", f"{100 * each['fraction_of_roofline']:.0f} %"]
        cells += ["?" if temporary is None else f"{temporary / 1e6:,.1f}", compiled, _verdict(each.get("against"))]
        lines.append(cells)
    return text_table.table(header, lines)


def _verdict(against: dict[str, Any] | None) -> str:
    if against is None or "ratio" not in against:
        return "not measured"
    ratio = against["ratio"]
    return f"{ratio['times']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f}), {against['variant']}"
