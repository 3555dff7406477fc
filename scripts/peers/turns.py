"""How `scripts/bench_loader.py` and its yardstick time a loader that reads ahead, each in a process of its own, in turn."""

import os
import pathlib
import time


def cpu_seconds() -> float:
    """Processor time of this process and its live children (the workers)."""
    ticks = os.sysconf("SC_CLK_TCK")
    children = pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    found = time.process_time()
    for child in children:
        fields = pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
        found += (int(fields[11]) + int(fields[12])) / ticks
    return found


def measure(batches, count: int, workers: int, images) -> dict:
    """{"images", "wall_s", "cpu_s"} of `count` batches; images(batch) counts them.

    What was read ahead before is used up first, untimed; afterwards reading ahead comes to rest, so that the other side has the core.
    """
    for _ in range(4 + 8 * workers):
        next(batches)
    wall, cpu = time.perf_counter(), cpu_seconds()
    total = sum(images(next(batches)) for _ in range(count))
    found = {"images": total, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
    resting = cpu_seconds()
    while True:
        time.sleep(0.2)
        before, resting = resting, cpu_seconds()
        if resting - before < 0.01:
            return found
