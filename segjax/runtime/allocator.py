"""What the C library does with freed memory. A CPU step needs the same hundreds of MB again and again.

glibc gives every large block back to the kernel when it is freed, and the kernel zeroes its pages again, one fault at a time, when the
next step asks for them: an ENet step of 27 GFLOP took 1,271 ms of a core so, 920 ms with the pages kept (docs/throughput.md).
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
_MADV_HUGEPAGE, _LARGE_PAGE = 14, 1 << 21  # mman.h; bytes
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
    kept = all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
    if kept:
        _ask_for_large_pages(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    return kept


def _ask_for_large_pages(size: int) -> None:
    """Pages of 2 MB for the next `size` bytes that malloc takes, where the kernel leaves that to programs ("madvise", its usual setting).

    Nothing is touched here: a block is asked for, marked and freed, and stays at the arena's end. Without room for it all stays as it was.
    """
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.madvise.argtypes, library.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], [ctypes.c_void_p]
    if place := library.malloc(size):
        first = -(-place // _LARGE_PAGE) * _LARGE_PAGE
        library.madvise(first, (place + size - first) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)
        library.free(place)
