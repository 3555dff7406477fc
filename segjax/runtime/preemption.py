"""Asked to stop: SIGTERM and SIGINT become a flag that the loop reads between two steps."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """While this context is open, a signal asks the loop to save and stop; it never interrupts a step or a save.

    Further signals change nothing. With many processes jax's own preemption service takes SIGTERM, so that one notified process
    stops all of them after the same step; SIGINT then keeps its usual meaning. Outside the main thread nothing is installed.
    """

    def __init__(self):
        self._name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame) -> None:
        if self._name is None:
            self._name = signal.Signals(number).name
            # os.write: print is not safe inside a handler that may have interrupted another print.
            os.write(2, f"{self._name}: saving after this step, then stopping\n".encode())

    def pending(self) -> str | None:
        """The signal that arrived at this process, or None."""
        return self._name

    def requested(self, step: int) -> str | None:
        """The signal's name when every process should stop before `step`, else None. Call once a step, in every process."""
        if jax.process_count() > 1:
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._name
