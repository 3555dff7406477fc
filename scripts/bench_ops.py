"""What the benchmark scripts share: forms that take turns, medians. Operations and training steps are measured by `segjax bench`."""

import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody
ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]


def alternate(forms: dict, repeats: int, calls: int) -> dict[str, float]:
    """Median milliseconds a call of each form; one untimed round first."""
    times = {name: [] for name in forms}
    for i in range(repeats + 1):
        for name, (call, wait) in forms.items():
            start = time.perf_counter()
            for _ in range(calls):
                out = call()
            wait(out)
            if i:
                times[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def temporary_mb(compiled) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20
