"""Memory that a step frees is there for the next one without a page fault, and lies in large pages."""

import os
import pathlib
import subprocess
import sys

import pytest

ROUNDS = """
import resource, numpy as np
from segjax.runtime.allocator import keep_pages
kept = keep_pages()
def use():
    block = np.ones(8_000_000)  # 64 MB, 15,625 pages
    return block.sum()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
heaps = open("/proc/self/smaps").read().split("[heap]")[1:]
marked = any(" hg" in heap.split("VmFlags")[1].splitlines()[0] for heap in heaps)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, marked)
"""


def _faults(**environment) -> tuple[bool, int, bool]:
    """(pages are kept, page faults of four rounds, the heap is to have large pages)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "SEGJAX_KEEP"))}
    told = subprocess.run(
        [sys.executable, "-c", ROUNDS], env=clean | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return told[0] == "True", int(told[1]), told[2] == "True"


def test_pages_are_kept():
    kept, faults, large = _faults()
    if not kept:
        pytest.skip("not glibc: mallopt is not there")
    assert faults < 1000
    assert large or not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists()


@pytest.mark.parametrize("environment", [{"SEGJAX_KEEP_PAGES": "0"}, {"MALLOC_ARENA_MAX": "4"}], ids=["off", "tuned by the caller"])
def test_it_can_be_left_alone(environment):
    kept, _, large = _faults(**environment)
    assert not kept and not large
