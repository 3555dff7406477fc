"""Between this process's jax and process 0: a socket that does not close at once when process 0 ends.

jax ends its process with a page of lines as soon as its connection to process 0 closes, and offers no way to be asked first. It is given
this relay instead of process 0's address: bytes go through both ways unchanged, but the end is held back while `peers`, which hears of it
at the same time, says in one line who is lost.
"""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

HELD_BACK_SECONDS = 30.0
"""`peers` needs a fraction of one. Should it not end this process, jax does then."""
_CONNECT_SECONDS = 20.0


@contextlib.contextmanager
def to(address: str) -> Iterator[str]:
    """An address for jax that leads to `address` (host:port). jax connects while the context lasts; the connection outlives it.

    A Unix socket, which no proxy of the environment takes for a host. Its file is gone when the context ends. Its name may have about a
    hundred letters; in a temporary folder (TMPDIR) of a longer one jax gets `address` itself.
    """
    host, _, port = address.rpartition(":")
    with tempfile.TemporaryDirectory(prefix="segjax-") as folder, socket.socket(socket.AF_UNIX) as door:
        if len(path := f"{folder}/relay") > 100:
            yield address
            return
        door.bind(path)
        door.listen()
        _in_thread(_serve, door, (host.strip("[]"), int(port)))
        yield f"unix:{path}"
        with contextlib.suppress(OSError):  # not every system wakes the thread by it, which then waits on to no harm
            door.shutdown(socket.SHUT_RDWR)


def _serve(door: socket.socket, target: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # the door is closed
        while True:
            _in_thread(_connect, door.accept()[0], target)


def _connect(near: socket.socket, target: tuple[str, int]) -> None:
    """Waits for process 0's service, which is about to open."""
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            far = socket.create_connection(target, timeout=5.0)
            break
        except OSError:
            if time.monotonic() > deadline:
                near.close()  # jax comes again, or says that it waited in vain
                return
            time.sleep(0.05)
    far.settimeout(None)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _in_thread(_pass_on, near, far, 0.0)
    _pass_on(far, near, HELD_BACK_SECONDS)


def _pass_on(source: socket.socket, sink: socket.socket, patience: float) -> None:
    """Until one of them ends. patience: seconds after which the other one hears of it."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    time.sleep(patience)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def _in_thread(function, *arguments) -> None:
    threading.Thread(target=function, args=arguments, name="relay", daemon=True).start()
