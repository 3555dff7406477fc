"""Room for frames, by the page faults of calls at every depth of a stack."""

import concurrent.futures
import resource

from segjax.runtime.frames import roomy


def twice(deeper: bool) -> bool:
    return twice(False) if deeper else deeper


def faults(depth: int) -> int:
    """Page faults of 200 calls from a stack of so many frames more."""
    if depth:
        return faults(depth - 1)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(200):
        twice(True)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_calls_at_the_end_of_a_chunk_of_frames_map_no_memory():
    """Of 150 depths one lies at the end of 16 KB, where every call is a page fault or more. A thread begins with a stack of its own."""
    worst = lambda: max(map(faults, range(150)))
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(worst).result() >= 200
        assert thread.submit(roomy, worst).result() < 20
    assert roomy(divmod, 7, 2) == (3, 1)
