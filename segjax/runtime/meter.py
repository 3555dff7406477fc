"""What surrounds the steps: metrics that are read late, rates, saves and evaluations, and where the time went."""

import contextlib
import math
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError
from segjax.runtime.checkpoint import Checkpoints
from segjax.runtime.log import MetricsWriter, Steps, say
from segjax.typing import State

AHEAD = 2
"""Steps that may wait behind the one that the device works on."""


class Clock:
    """Where the wall-clock time of a run goes: `with clock("data"): ...` books it; what is not booked went into steps."""

    def __init__(self):
        self.begun = time.monotonic()
        self.spent: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.monotonic() - begun

    def total(self) -> float:
        return time.monotonic() - self.begun


_finite = jax.jit(lambda tree: jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])))
"""Whether every number of a tree is finite; the stages of a run share its program."""


class Meter:
    """The bookkeeping of one call of the training loop."""

    def __init__(
        self,
        place: pathlib.Path,
        saves: Checkpoints,
        clock: Clock,
        start: int,
        log_every: int,
        stop_on_nan: bool,
        rows: int,
        host_metrics: Callable[[], Mapping[str, float]],
    ):
        self.writer = MetricsWriter(place, start)
        self.saves, self.clock, self.log_every, self.stop_on_nan, self.rows = saves, clock, log_every, stop_on_nan, rows
        self.pending: deque = deque()  # (step, metrics on the device)
        self.window: list[dict[str, float]] = []
        self.start = self.last = start
        self.idle = 0.0  # seconds that the host waited for the device with a batch at hand
        self.host_metrics = host_metrics
        clock.spent["start"] = clock.total()
        self.mark = (clock.total(), dict(clock.spent), self.idle)

    def took(self, step: int, metrics: dict, progress: Steps) -> None:
        """Notes a dispatched step and reads, in one transfer, what is due of the steps before it: the device never waits for the host."""
        self.progress = progress
        self.pending.append((step, metrics))
        if len(self.pending) > AHEAD:
            begun = time.monotonic()
            jax.block_until_ready(self.pending[-1 - AHEAD][1])
            self.idle += time.monotonic() - begun
        progress.advance(step - 1)
        if (step - 1) % self.log_every == 0:
            self.read(len(self.pending) - 1)

    def read(self, count: int) -> None:
        """Fetches the oldest `count` pending steps. Raises SegjaxError, after writing the row, at the first loss that is not finite."""
        items = [self.pending.popleft() for _ in range(count)]
        for (step, _), metrics in zip(items, jax.device_get([metrics for _, metrics in items]), strict=True):
            metrics = {key: float(value) for key, value in metrics.items()}
            bad = [key for key, value in metrics.items() if key.startswith("loss") and not math.isfinite(value)]
            if bad and self.stop_on_nan:
                self.writer.write(step, metrics)
                raise SegjaxError(
                    f"{bad[0]} is {metrics[bad[0]]} at step {step}: stopped, the row is in metrics.jsonl and saved steps are intact. "
                    "Lower optimizer.lr, set optimizer.clip_norm, or look for broken inputs with `segjax data check`"
                )
            self.window.append(metrics)
            self.last = step
            if step % self.log_every == 0:
                self.row()

    def row(self) -> None:
        """Writes the mean of the window, and its rates."""
        if not self.window:
            return
        total, spent = self.clock.total(), dict(self.clock.spent)
        passed = {name: seconds - self.mark[1].get(name, 0.0) for name, seconds in spent.items()}
        seconds = max(total - self.mark[0] - passed.get("save", 0.0) - passed.get("evaluate", 0.0), 1e-9)
        means = {key: float(np.mean([m[key] for m in self.window if key in m])) for key in self.window[-1]}
        means["images_per_s"] = len(self.window) * self.rows / seconds
        means["step_s"] = seconds / len(self.window)
        means["data_wait"] = min(passed.get("data", 0.0) / seconds, 1.0)
        means["host_idle"] = min((self.idle - self.mark[2]) / seconds, 1.0)
        means["goodput"] = self.goodput()
        means |= self.host_metrics()
        self.writer.write(self.last, means)
        self.progress.report(self.last, means)
        self.window.clear()
        self.mark = (total, spent, self.idle)
        self.saves.check()

    def goodput(self) -> float:
        """Share of the wall-clock time since the call that was not start, waiting for data, saving or evaluating."""
        return max(1 - sum(self.clock.spent.values()) / max(self.clock.total(), 1e-9), 0.0)

    def save(self, step: int, state: State, *, wait: bool) -> None:
        """Saves `step` behind the loop, once everything up to it is known to be finite. `wait`: until it is on disk."""
        self.read(len(self.pending))
        params = getattr(state, "params", None)
        if self.stop_on_nan and params is not None and not bool(_finite(params)):
            raise SegjaxError(f"params are not finite after step {step}: not saved, older steps are intact. Lower optimizer.lr")
        if wait:
            self.row()
        with self.clock("save"):
            self.saves.save(step, state)
            if wait:
                self.saves.wait()

    def evaluate(self, step: int, state: State, evaluate: Callable) -> None:
        """Logs what `evaluate` finds; its time counts in no rate."""
        self.read(len(self.pending))
        with self.clock("evaluate"):
            scores = {key: float(value) for key, value in evaluate(state, step).items()}
        self.writer.write(step, scores)
        say(f"step {step}  " + "  ".join(f"{key} {value:.4g}" for key, value in scores.items()))

    def summary(self, steps: int) -> str:
        """One line for the end of the run."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.clock.spent.items())
        shares = f"goodput {self.goodput():.0%}, host idle {self.idle / max(self.clock.total(), 1e-9):.0%}"
        return f"done: steps {self.start} to {steps} in {self.clock.total():.1f} s ({parts}), {shares}"

    def close(self) -> None:
        """Lets a save in flight end, whatever ended the loop."""
        try:
            self.saves.wait()
        except SegjaxError as error:
            say(str(error))
        self.writer.close()
