"""What a run tells: lines or a progress bar, metrics.jsonl, TensorBoard events."""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segjax.errors import SegjaxError

_console = Console(file=sys.stdout)


def say(text: str) -> None:
    """One line to the terminal, from the first process; above the progress bar when there is one. A closed pipe is ignored."""
    if jax.process_index():
        return
    try:
        if Steps.shown is not None:
            Steps.shown.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
    except BrokenPipeError:
        # The reader went away (`| head`). Training goes on without it.
        sys.stdout = open(os.devnull, "w")


class MetricsWriter:
    """WORKDIR/metrics.jsonl, one object a row, and WORKDIR/tb/ events. Rows of the first process only.

    start_step: the finished steps that a resumed run begins with. Later rows of the run before it, and a last line that a kill cut
    off, are removed: every step is there once. Raises SegjaxError when the disk is full or read-only.
    """

    def __init__(self, workdir: str | os.PathLike, start_step: int = 0):
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        self._file = self._events = None
        if jax.process_index():
            return
        from tensorboardX import SummaryWriter  # imports torch where it is installed: seconds that only training should pay

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                kept = [line for line in self.path.read_text(errors="replace").splitlines() if _step_of(line) <= start_step]
                rewritten = self.path.with_suffix(".tmp")
                rewritten.write_text("".join(line + "\n" for line in kept))
                os.replace(rewritten, self.path)
            self._file = open(self.path, "a")
            self._events = SummaryWriter(str(self.path.parent / "tb"), purge_step=start_step + 1 if start_step else None)
        except OSError as error:
            raise SegjaxError(f"{self.path} cannot be written: {error.strerror}. Free space or choose another --workdir") from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the row of `step` and flushes it. Values that are not finite become strings ("nan"), so that the file stays JSON."""
        if self._file is None or self._events is None:
            return
        row = {key: float(value) for key, value in metrics.items()}
        try:
            finite = {key: value if math.isfinite(value) else str(value) for key, value in row.items()}
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
        except OSError as error:
            raise SegjaxError(f"{self.path} cannot be written: {error.strerror}. Free space; the same command goes on") from error
        for key, value in row.items():
            self._events.add_scalar(key, value, step)

    def close(self) -> None:
        if self._file is not None and self._events is not None:
            self._file.close()
            self._events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class Steps:
    """Progress over training steps: a bar with rate and time left on a terminal, else a line at every report."""

    shown: Progress | None = None

    def __init__(self, start: int, total: int, *, bar: bool | None = None):
        self.start, self.total, self.begun = start, total, time.monotonic()
        if (_console.is_terminal if bar is None else bar) and jax.process_index() == 0:
            columns = (
                "train",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            shown = Steps.shown = Progress(*columns, console=_console)
            self._task = shown.add_task("train", total=total, completed=start, text="")
            shown.start()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_) -> None:
        if Steps.shown is not None:
            Steps.shown.stop()
            Steps.shown = None

    def advance(self, step: int) -> None:
        """`step` steps are done."""
        if Steps.shown is not None:
            Steps.shown.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Losses, rate and time left of `step`."""
        losses = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items() if key.startswith("loss"))
        rate = f"{metrics['images_per_s']:.1f} images/s" if "images_per_s" in metrics else ""
        if "host_idle" in metrics:
            rate += f"  host idle {metrics['host_idle']:.0%}, data late {metrics['data_wait']:.0%}"
        if Steps.shown is not None:
            Steps.shown.update(self._task, completed=step, text=f"{losses}  {rate}")
            return
        seconds = (time.monotonic() - self.begun) / max(step - self.start, 1) * (self.total - step)
        left = f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02d}:{int(seconds) % 60:02d}"
        say(f"step {step}/{self.total}  {losses}  {rate}  {left} left")
