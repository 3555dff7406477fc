"""The processes of one run watch each other: who is lost or stops is told in one line by all that are left, which then end.

Each process holds a connection to process 0, opened before jax's own (`links`). An ended process closes its connection at once; one that
hangs or whose host is gone is silent, and is given up after `heartbeat` seconds. jax's own watch, half as patient again and
behind a `relay`, stays behind this one: it ends a process without a word of Python.
"""

import contextlib
import hashlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax

from segjax.errors import ConfigError, Preempted, SegjaxError
from segjax.runtime import links
from segjax.runtime.links import Link

GRACE_SECONDS = 2.0
"""How long a process that hears of another's error waits for its own: a mistake in a config is every process's."""
_QUIET = (0, Preempted.code)
_current: "Peers | None" = None


class Peers:
    """This process's part. opened: the links, of process 0 to all others, of these to process 0. hosts: of every process."""

    def __init__(self, index: int, hosts: list[str], opened: dict[int, Link], heartbeat: float):
        self.index, self.hosts, self.count = index, hosts, len(hosts)
        self.cleanups: list[Callable[[], Any]] = []
        self._links, self._heartbeat = opened, heartbeat
        self._left: dict[int, int] = {}  # exit codes of those that have said why they end
        self._answers: queue.Queue = queue.Queue()
        self._values: dict[int, Any] = {}
        self._state = threading.Lock()
        self._ending = self._known = False
        for peer, link in opened.items():
            link.patience(heartbeat)
            threading.Thread(target=self._listen, args=(peer, link), name=f"peer-{peer}", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def exchange(self, value: Any) -> list[Any]:
        """What every process gives, by its number; each waits for all. value: anything JSON holds. From one thread, in one order."""
        if self.index:
            with contextlib.suppress(OSError):  # the watch tells who is lost
                self._links[0].send("value", value=value)
        else:
            self._collect(0, value)
        while True:
            gone = [who for who, code in self._left.items() if code in _QUIET]  # before the look: an answer comes before that news
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=0.2)
            if gone:
                raise SegjaxError(f"{links.numbers(gone)} ended while process {self.index} still works: they do not see the same files")

    def leave(self, code: int, text: str) -> None:
        """Says that this process ends with `code`. After an error it ends here, or jax would wait for the others."""
        with self._state:
            ended, self._ending = self._ending, self._ending or code not in _QUIET
        if ended:
            time.sleep(60)  # the watch is about to end this process
        self._tell("left", who=self.index, code=code, text=text)
        if code not in _QUIET:
            self._exit(code, linger=GRACE_SECONDS + 1)

    def failed(self, error: Exception) -> None:
        """An error that nobody has foreseen: prints its traceback and ends this process. When jax raised it, another process may turn out
        to be the reason: a collective fails when one side of it is gone."""
        deadline = time.monotonic() + (GRACE_SECONDS + 1 if isinstance(error, jax.errors.JaxRuntimeError) else 0)
        while time.monotonic() < deadline:
            if self._known:
                time.sleep(60)  # the watch is about to end this process
            time.sleep(0.05)
        traceback.print_exception(error)
        self.leave(1, "".join(traceback.format_exception_only(error)).strip().splitlines()[0][:300])

    def name(self, index: int) -> str:
        return f"process {index} ({self.hosts[index]})"

    def _listen(self, peer: int, link: Link) -> None:
        why = "its connection closed: killed, out of memory or its host is gone"
        try:
            while (message := link.receive()) is not None:
                self._heard(peer, message)
        except TimeoutError:
            why = f"not heard of for {self._heartbeat:g} s"
        except (OSError, ValueError):
            pass
        if peer not in self._left:
            self._lost(peer, why)

    def _heard(self, peer: int, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        if kind == "value":
            self._collect(peer, message["value"])
        elif kind == "values":
            self._answers.put(message["values"])
        elif kind == "lost":
            self._lost(message["who"], message["why"])
        elif kind == "left":
            who, code, text = message["who"], message["code"], message["text"]
            self._left[who] = code
            if self.index == 0:
                self._tell("left", who=who, code=code, text=text)
            if code not in _QUIET:
                self._known = True
                threading.Timer(GRACE_SECONDS, self._end, (code, f"{self.name(who)} stopped with exit code {code}: {text}")).start()

    def _collect(self, peer: int, value: Any) -> None:
        with self._state:
            self._values[peer] = value
            whole = [self._values[i] for i in range(self.count)] if len(self._values) == self.count else None
            if whole is not None:
                self._values = {}
        if whole is not None:
            self._tell("values", values=whole)
            self._answers.put(whole)

    def _lost(self, who: int, why: str) -> None:
        with self._state:
            later, self._known = self._known, True
        if later:
            return  # it followed the first one
        if self.index == 0:
            self._tell("lost", who=who, why=why)
        name = "this process" if who == self.index else self.name(who)
        self._end(1, f"{name} is lost ({why}): start all {self.count} again, the same command goes on from the last save")

    def _tell(self, kind: str, **values: Any) -> None:
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.send(kind, **values)

    def _beat(self) -> None:
        while True:
            time.sleep(self._heartbeat / 4)
            self._tell("beat")

    def _end(self, code: int, text: str) -> None:
        with self._state:
            if self._ending:
                return
            self._ending = True
        os.write(2, f"segjax: {text}\n".encode())
        self._exit(code)

    def _exit(self, code: int, linger: float = 1.0) -> None:
        """Ends the process whatever its other threads do. linger: seconds; jax's service goes with process 0, so the others go first."""
        if self.index == 0:
            time.sleep(linger)
        for cleanup in self.cleanups:
            with contextlib.suppress(Exception):
                cleanup()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def begin(index: int, opened: dict[int, Link], hosts: list[str], heartbeat: float) -> None:
    """Makes this process a part of the run of `hosts`."""
    global _current
    _current = Peers(index, hosts, opened, heartbeat)


def current() -> "Peers | None":
    """This run's processes, None when there is one."""
    return _current


def exchange(value: Any) -> list[Any]:
    """`Peers.exchange`; [value] in a run of one."""
    return [value] if _current is None else _current.exchange(value)


def at_end(cleanup: Callable[[], Any]) -> None:
    """What to do when this process must end in the middle of its work because of another; nothing in a run of one."""
    if _current is not None:
        _current.cleanups.append(cleanup)


def wait_until(seen: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether `seen()` becomes true in time: a network file system shows what another host has written after a while."""
    deadline = time.monotonic() + seconds
    while not (found := seen()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def agree(facts: Mapping[str, Any]) -> None:
    """ConfigError, alike in every process, that names what differs between them. facts: plain values by a name that a person knows."""
    if _current is None:
        return
    facts = json.loads(json.dumps(facts))
    digests = exchange(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
    others = [index for index, digest in enumerate(digests) if digest != digests[0]]
    if not others:
        return
    given = exchange(facts if _current.index in (0, others[0]) else None)
    first, other = given[0], given[others[0]]
    keys = [key for key in dict.fromkeys([*first, *other]) if first.get(key, "absent") != other.get(key, "absent")]
    has = "have" if len(others) > 1 else "has"
    listed = "; ".join(f"{key} {other.get(key, 'absent')} and process 0 {first.get(key, 'absent')}" for key in keys[:3])
    more = f"; and {len(keys) - 3} more differences" if len(keys) > 3 else ""
    raise ConfigError(
        f"{links.numbers(others)} ({_current.hosts[others[0]]}) {has} {listed}{more}: start all with the same code, packages and command"
    )
