"""Room for Python's stack: tracing a network is Python calls fifty to two hundred deep, in and out many thousand times.

CPython keeps a thread's frames in chunks of 16 KB. It maps one when a call finds no room and unmaps it when that call returns, so a loop
at the end of a chunk makes two system calls and some page faults for every call: up to a fifth of the time that a step takes to trace.
"""

from collections.abc import Callable
from typing import Any

_WORDS = 1 << 16
"""A frame of so many gets a chunk of 1 MB, half of which is left to the calls that it makes. Pages that none touches cost nothing."""


def roomy(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), with room for the frames of its calls."""
    return function(*arguments)


roomy.__code__ = roomy.__code__.replace(co_stacksize=_WORDS)
