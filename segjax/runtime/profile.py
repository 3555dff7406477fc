"""A trace of a few training steps for xprof (TensorBoard's profiler) or Perfetto, written while the loop goes on."""

import pathlib
from typing import Any, Self

import jax

from segjax.runtime.log import say


class Profile:
    """Traces the steps first .. last - 1 (counted from 0) into `folder`, or nothing where `steps` is None.

    The loop calls `before(step, state)` and `after(done, state)`; the device is waited for at both ends, so that the trace holds these
    steps alone. A run that begins later than `first` traces from its first step on; one that ends before `last` writes what it has.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self.steps, self.folder, self.active = steps, folder, False

    def before(self, step: int, state: Any) -> None:
        """Begins the trace at its first step."""
        if self.steps is not None and not self.active and self.steps[0] <= step < self.steps[1]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.active = True

    def after(self, done: int, state: Any) -> None:
        """Writes the trace once its last step is done."""
        if self.active and self.steps is not None and done >= self.steps[1]:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self.active, self.steps = False, None
        say(f"trace of the profiled steps in {self.folder} (xprof --logdir={self.folder}, or TensorBoard with its profile plugin)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.active:
            self._stop()
