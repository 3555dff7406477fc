"""A run's directory: writable, owned by one run at a time, and with a record of what made it."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import jax

from segjax.errors import ConfigError
from segjax.runtime import peers
from segjax.runtime.log import say

LOCK, BEAT_SECONDS, STALE_SECONDS = "lock", 30, 300


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The directory, made and locked for this run. Raises ConfigError when it cannot be written or another run is in it.

    The lock file holds host and process id and is touched every 30 s. It is taken over, with a printed line, when its process is
    gone from this host, or when its host has not touched it for 5 minutes. Of many processes the first locks it; the others raise
    ConfigError when they do not see that lock, for then they see another folder.
    """
    workdir = pathlib.Path(workdir).absolute()
    lock = workdir / LOCK
    if jax.process_index():
        text = peers.exchange("")[0]
        if text and not peers.wait_until(lambda: _text(lock) == text):
            raise ConfigError(f"{lock}, written by process 0, is not here: --workdir must lie on a file system that every process sees")
        yield workdir
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _take(lock)
    except OSError as error:
        raise ConfigError(f"workdir {workdir} cannot be written ({error.strerror}): choose another --workdir") from error
    peers.at_end(lambda: lock.unlink(missing_ok=True))
    peers.exchange(_text(lock))
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(lock, released), name="lock", daemon=True)
    beat.start()
    try:
        yield workdir
    finally:
        released.set()
        beat.join()
        lock.unlink(missing_ok=True)


def refuse_if_in_use(workdir: pathlib.Path) -> None:
    """ConfigError when a living run holds the directory. A stale lock is removed."""
    if (workdir / LOCK).is_file():
        _give_way_or_remove(workdir / LOCK, socket.gethostname())


def _text(lock: pathlib.Path) -> str:
    try:
        return lock.read_text()
    except OSError:
        return ""


def _take(lock: pathlib.Path) -> None:
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
    for _ in range(5):
        try:
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            _give_way_or_remove(lock, mine["host"])
            continue
        with open(handle, "w") as file:
            json.dump(mine, file)
        return
    raise ConfigError(f"{lock} comes back as often as it is removed: another run is starting there, choose another --workdir")


def _give_way_or_remove(lock: pathlib.Path, host: str) -> None:
    try:
        age = time.time() - lock.stat().st_mtime
        holder = json.loads(lock.read_text() or "{}")
    except FileNotFoundError:
        return
    except ValueError:
        holder = {}
    where = f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
    if holder.get("host") == host:
        alive = _born(holder["pid"]) is not None and _born(holder["pid"]) == holder.get("born")
    else:
        alive = age < STALE_SECONDS if holder else age < 5  # an empty lock is a start that is under way, or was killed
    if alive:
        raise ConfigError(
            f"workdir {lock.parent} is in use by {where}: wait for it, choose another --workdir, or remove {lock} if it is gone"
        )
    say(f"the lock of {where} is stale and taken over")
    lock.unlink(missing_ok=True)


def _born(pid: int) -> str | None:
    """What tells this process from a later one with the same id; None when there is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        return "alive"


def _beat(lock: pathlib.Path, released: threading.Event) -> None:
    while not released.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(lock)


def record(workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> None:
    """Writes WORKDIR/run.json (versions, devices, mesh, git commit, command) unless the verb that runs has written its own."""
    path = workdir / "run.json"
    if jax.process_index() or path.exists():
        return
    packages = ("segjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    installed = {d.metadata["Name"]: d.version for name in packages for d in importlib.metadata.distributions(name=name)}
    device = mesh.devices.flat[0]
    about = {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": installed,
        "devices": {"platform": device.platform, "kind": device.device_kind, "count": mesh.size, "processes": jax.process_count()},
        "mesh": dict(mesh.shape),
    }
    path.write_text(json.dumps(about, indent=1) + "\n")


def commit() -> str | None:
    """The git commit of the source that runs, with "+" when it was changed since; None outside a repository."""
    here = pathlib.Path(__file__).resolve().parent
    try:
        git = lambda *words: subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=10, check=True).stdout
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
