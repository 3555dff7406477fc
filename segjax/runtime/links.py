"""Lines of JSON between the processes of one run, and how they first find each other at the address of process 0."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from typing import Any

from segjax.errors import ConfigError, SegjaxError

_LONGEST = 2**26


class Link:
    """One connection. Sending is safe from any thread; one thread receives."""

    def __init__(self, connected: socket.socket, seconds: float):
        """seconds: how long the other end may be silent, or not take what is sent, before it counts as lost."""
        self._socket, self._lock = connected, threading.Lock()
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(seconds)
        self._lines = connected.makefile("rb")

    def send(self, kind: str, **values: Any) -> None:
        """OSError when the other end is gone."""
        with self._lock:
            self._socket.sendall(json.dumps({"kind": kind, **values}).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message, None once the other end has closed. TimeoutError, OSError; ValueError for what is no message."""
        line = self._lines.readline(_LONGEST)
        if not line:
            return None
        message = json.loads(line)
        if not isinstance(message, dict) or "kind" not in message:
            raise ValueError(f"not a message: {line[:80]!r}")
        return message

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def patience(self, seconds: float) -> None:
        self._socket.settimeout(seconds)


def listen(port: int) -> socket.socket:
    """Process 0's door, at every address of its host. ConfigError when the port is taken."""
    families = [socket.AF_INET6, socket.AF_INET] if socket.has_dualstack_ipv6() else [socket.AF_INET]
    for family in families:
        try:
            return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=family == socket.AF_INET6)
        except OSError as error:
            code = error.errno or 0
            if code == errno.EADDRINUSE:
                break  # else: a container without IPv6, say
    raise ConfigError(f"port {port} of {socket.gethostname()} cannot be opened ({os.strerror(code)}): name another in --coordinator")


def gather(door: socket.socket, count: int, seconds: float, where: str) -> tuple[dict[int, Link], list[str]]:
    """Process 0 waits for all others and tells them who is there: ({number: link}, hosts). The door is closed on return.

    where: its address, for messages. SegjaxError names the processes that did not come in `seconds`; ConfigError: two with one number, or
    another number of processes. Either is told to those that came.
    """
    links: dict[int, Link] = {}
    hosts = {0: socket.gethostname()}
    deadline = time.monotonic() + seconds
    try:
        while len(hosts) < count:
            link, hello = _next_hello(door, deadline)
            if link is None or hello is None:
                missing = [index for index in range(count) if index not in hosts]
                raise SegjaxError(
                    f"{numbers(missing)} of {count} did not come to {where} within {seconds:g} s: look at what they print, start them with "
                    f"the same --coordinator and --processes, or wait longer with SEGJAX_JOIN_TIMEOUT"
                )
            index, theirs, host = hello["index"], hello["count"], hello["host"]
            links.setdefault(index, link)
            if theirs != count:
                link.send(
                    "refused", text=(text := f"process {index} ({host}) was started with --processes={theirs}, process 0 with {count}")
                )
                raise ConfigError(f"{text}: start all with one number")
            if index in hosts:
                link.send("refused", text=(text := f"two processes have --process-id={index} (on {hosts[index]} and {host})"))
                raise ConfigError(f"{text}: give each its own, 0 to {count - 1}")
            hosts[index] = host
        names = [hosts[index] for index in range(count)]
        for link in links.values():
            link.send("welcome", hosts=names)
    except SegjaxError as error:
        for link in links.values():
            with contextlib.suppress(OSError):
                link.send("refused", text=str(error), code=error.code)
                link.close()
        raise
    finally:
        door.close()
    return links, names


def _next_hello(door: socket.socket, deadline: float) -> tuple[Link, dict[str, Any]] | tuple[None, None]:
    """The next that says hello; whoever says something else is no process of a run. Nothing after the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        door.settimeout(left)
        try:
            link = Link(door.accept()[0], 5.0)
        except TimeoutError:
            break
        try:
            hello = link.receive()
        except (OSError, ValueError):
            hello = None
        if hello is not None and hello["kind"] == "hello" and {"index", "count", "host"} <= hello.keys():
            return link, hello
        link.close()
    return None, None


def reach(addresses: list[tuple[str, int]], index: int, count: int, seconds: float) -> tuple[Link, list[str]]:
    """Another process finds process 0 at one of its addresses: (link, hosts of all). SegjaxError when it does not answer in `seconds`."""
    deadline, why = time.monotonic() + seconds, ""
    where = " or ".join(f"{host}:{port}" for host, port in addresses)
    while True:
        for address in addresses:
            try:
                link = Link(socket.create_connection(address, timeout=5.0), max(deadline - time.monotonic(), 1.0) + 5.0)
                link.send("hello", index=index, count=count, host=socket.gethostname(), pid=os.getpid())
                answer = link.receive()
            except ValueError:
                why = "what answers there is no process of this run: is the port free?"
                continue
            except OSError as error:
                why = error.strerror or str(error)
                continue
            if answer is None:
                why = "it closed the connection"
                continue
            if answer["kind"] == "welcome":
                return link, answer["hosts"]
            raise (ConfigError if answer.get("code", ConfigError.code) == ConfigError.code else SegjaxError)(
                answer.get("text", answer["kind"])
            )
        if time.monotonic() > deadline:
            raise SegjaxError(
                f"process 0 does not answer at {where} within {seconds:g} s ({why}): start it there with --process-id=0, open the port "
                "between the hosts, or wait longer with SEGJAX_JOIN_TIMEOUT"
            )
        time.sleep(0.2)


def numbers(indices: list[int]) -> str:
    """ "process 3", "processes 1, 2, 5": the first few."""
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return f"process{'es' if len(indices) > 1 else ''} {shown}"
