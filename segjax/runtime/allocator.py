"""What the C library does with freed memory. A CPU step needs the same hundreds of MB again and again.

glibc gives every large block back to the kernel when it is freed, and the kernel zeroes its pages again, one fault at a time, when the
next step asks for them: an ENet step of 27 GFLOP took 1,271 ms of a core so, 920 ms with the pages kept (docs/throughput.md).
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "MALLOC_ARENA_MAX_")
KEEP = "SEGJAX_KEEP_PAGES"


def keep_pages() -> bool:
    """Lets this process keep memory that it frees, for its next allocation; True where that took effect.

    Call it before the first large array. False, and nothing changed: not glibc (macOS, musl), SEGJAX_KEEP_PAGES=0, or a malloc that the
    caller has tuned by the environment. The process's peak becomes the memory that it holds to its end.
    """
    if not sys.platform.startswith("linux") or os.environ.get(KEEP, "1") == "0" or any(name in os.environ for name in _OWN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One arena, grown at its end and never trimmed (-1): an arena of a thread is mapped, and so would be unmapped.
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
