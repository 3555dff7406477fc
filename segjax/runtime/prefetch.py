"""The next batch, read and on its way to the device while a step runs."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Prefetch:
    """Calls `put` on the elements of `batches` in a thread, one ahead. An error in the thread is raised by `next`."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any]):
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(batches, put), name="prefetch", daemon=True)
        self._thread.start()

    def _fill(self, batches: Iterator[Any], put: Callable[[Any], Any]) -> None:
        try:
            for batch in batches:
                if not self._offer((put(batch), None)):
                    return
            self._offer((None, StopIteration()))
        except Exception as error:
            self._offer((None, error))
        finally:
            getattr(batches, "close", lambda: None)()

    def _offer(self, item: tuple) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self, give_up: Callable[[], Any] = lambda: None) -> Any:
        """The next batch, or None once `give_up()` is true while the data is late. Raises StopIteration at the end of the data."""
        while True:
            try:
                batch, error = self._queue.get(timeout=0.1)
            except queue.Empty:
                if give_up():
                    return None
                continue
            if error is not None:
                raise error
            return batch

    def close(self) -> None:
        """Ends the thread; does not wait longer than 5 s for data that hangs."""
        self._closed.set()
        self._thread.join(timeout=5)
