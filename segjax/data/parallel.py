"""One function over many indices on every core, results in order."""

import concurrent.futures
import os
from collections.abc import Callable, Iterator
from typing import Any


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    function: Callable[[int], Any], count: int, *, threads: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[Any]:
    """Yields function(0) .. function(count - 1). threads: default one a core; image decoders leave Python's lock, so threads suffice.

    progress(done, total) is called in the caller's thread after each result. The first exception ends the walk and cancels the rest.
    """
    with concurrent.futures.ThreadPoolExecutor(threads or cores()) as pool:
        for index, result in enumerate(pool.map(function, range(count))):
            yield result
            if progress:
                progress(index + 1, count)
