"""How long work is shown: a bar with rate and time left on a terminal, plain lines otherwise."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINE_EVERY = 10.0
"""Seconds between two plain lines."""


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives `advance(n)`; n items of `total` more are done. The bar and the lines go to stderr, so stdout stays the verb's result."""
    if sys.stderr.isatty():
        with _bar(label, total) as advance:
            yield advance
    else:
        yield _Lines(label, total)


@contextlib.contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich import console
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn(label),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TaskProgressColumn(show_speed=True),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)


class _Lines:
    """One line every `LINE_EVERY` seconds and one at the end."""

    def __init__(self, label: str, total: int):
        self.label, self.total, self.done = label, total, 0
        self.start = self.last = time.monotonic()

    def __call__(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if self.done < self.total and now - self.last < LINE_EVERY:
            return
        self.last = now
        seconds = max(now - self.start, 1e-9)
        left = (self.total - self.done) * seconds / max(self.done, 1)
        rest = f", {left:.0f} s left" if self.done < self.total else f" in {seconds:.1f} s"
        print(f"{self.label}: {self.done}/{self.total}, {self.done / seconds:.1f}/s{rest}", file=sys.stderr, flush=True)
