"""Which operations a step's time goes to, from a profiler's trace of a few steps: by direction, by kind, and the longest by name.

The profiler tells how long each kernel or CPU operation ran. Those that XLA made carry the name of an instruction of the optimized program,
whose metadata tell whether they belong to the backward pass (`transpose(`) and which JAX operations they came from; the kernels of
libraries (cuDNN, cuBLAS) tell by their own names.
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile
from typing import Any

import jax

from segjax.verbs import text_table
from segjax.verbs.bench_runner import Runner

STEPS, LONGEST = 3, 25
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?metadata=\{[^}]*?op_name=\"([^\"]*)\"", re.MULTILINE)
_KINDS = (
    ("attention", re.compile(r"flash|fmha|sdpa|attention", re.I)),
    ("convolution", re.compile(r"conv|fprop|dgrad|wgrad|implicit|winograd", re.I)),
    ("product", re.compile(r"gemm|dot|nvjet|cublas|cutlass|matmul|triton_gemm|splitk", re.I)),
    ("copy", re.compile(r"copy|transpose|memcpy|memset|slice|concatenate|pad", re.I)),
    ("reduction", re.compile(r"reduce", re.I)),
)
_BACKWARD = re.compile(r"dgrad|wgrad|bprop|backward", re.I)
_WAITING = re.compile(r"^(while|conditional|call|ThunkExecutor|ThreadpoolListener|TfrtCpu|PjRt|PjitFunction|Wait|end:)|::", re.I)


def of(runner: Runner, steps: int = STEPS) -> dict[str, Any]:
    """{"direction", "kind": milliseconds a step by each, "longest": [name, milliseconds, calls, where it comes from]}, summed over streams
    or threads: what runs side by side counts twice. {"failed": why} where the profiler has nothing to say; the row stands without it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with jax.profiler.trace(folder):
                runner.steps(steps)
            found = next(pathlib.Path(folder).rglob("*.trace.json.gz"))
            events = json.loads(gzip.decompress(found.read_bytes()))["traceEvents"]
        except (RuntimeError, OSError, ValueError, KeyError, StopIteration) as error:
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return summary(events, origins(runner.compiled.as_text() or ""), steps)


def origins(program: str) -> dict[str, str]:
    """Instruction of the optimized program -> the JAX operation that it came from."""
    return dict(_INSTRUCTION.findall(program))


def summary(events: list[dict[str, Any]], origin: dict[str, str], steps: int) -> dict[str, Any]:
    """Of a trace's events (Chrome's format): those of the devices, or on a CPU those that are named as instructions are."""
    process = {event["pid"]: event["args"]["name"] for event in events if event.get("name") == "process_name"}
    devices = {pid for pid, name in process.items() if name.startswith("/device:")}
    streams = {(event["pid"], event["tid"]) for event in events if event.get("name") == "thread_name" and "Stream" in event["args"]["name"]}
    time: dict[str, float] = collections.defaultdict(float)
    calls: dict[str, int] = collections.defaultdict(int)
    where: dict[str, str] = {}
    for event in events:
        if event.get("ph") != "X" or _WAITING.search(event["name"]):
            continue
        name = event.get("args", {}).get("hlo_op") or event["name"]
        place = (event.get("pid"), event.get("tid"))
        if not (place in streams if streams else event.get("pid") in devices if devices else name in origin):
            continue
        told = event["name"] if devices else name
        time[told] += event.get("dur", 0) / 1e3 / steps
        calls[told] += 1
        where.setdefault(told, origin.get(name) or origin.get(name.replace("_", "."), ""))
    direction: dict[str, float] = collections.defaultdict(float)
    kind: dict[str, float] = collections.defaultdict(float)
    for name, ms in time.items():
        back = "transpose(" in where[name] or bool(_BACKWARD.search(name))
        direction["backward" if back else "forward and the rest"] += ms
        text = f"{name} {where[name].rsplit('/', 1)[-1]}"
        kind[next((kind for kind, pattern in _KINDS if pattern.search(text)), "elementwise")] += ms
    longest = sorted(time, key=lambda name: -time[name])[:LONGEST]
    return {
        "direction": dict(direction),
        "kind": dict(kind),
        "longest": [[name[:120], time[name], calls[name] / steps, where[name][-120:]] for name in longest],
    }


def table(profile: dict[str, Any]) -> str:
    """As text: sums first."""
    if "failed" in profile:
        return f"no profile: {profile['failed']}"
    sums = [f"{name} {ms:.3g} ms" for part in ("direction", "kind") for name, ms in profile[part].items()]
    rows = [[name, f"{ms:.3f}", f"{calls:g}", where] for name, ms, calls, where in profile["longest"]]
    return f"{', '.join(sums)}\n{text_table.table(['operation', 'ms a step', 'calls', 'from'], rows)}"
