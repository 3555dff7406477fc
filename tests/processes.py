"""The same `segjax` command in two processes that know of each other."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from segjax import cli


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(cache: pathlib.Path, *, path: str = "", devices: int = 1) -> dict[str, str]:
    """Of a process with so many CPU devices. cache: folder of compiled programs. path: one more folder to import from."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    flags += [f"--xla_force_host_platform_device_count={devices}"] * (devices > 1)
    found = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return found | {"PYTHONPATH": os.pathsep.join([path, str(pathlib.Path(cli.__file__).parents[1])])}


def start_two(argv: Sequence[str], env: Mapping[str, str], *, second: Sequence[str] = (), mpi: bool = False) -> list[subprocess.Popen]:
    """Both, with their output to be read. second: what the second one is told besides: flags, or VARIABLE=value.

    mpi: they are to find each other by what Open MPI tells its tasks, which is for jax to read, instead of by flags.
    """
    port, runs = free_port(), []
    for index, more in enumerate(((), second)):
        own = dict(word.split("=", 1) for word in more if not word.startswith("-"))
        flags = [word for word in more if word.startswith("-")]
        if mpi:
            own |= {"OMPI_MCA_orte_hnp_uri": "65536.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": str(port)}
            own |= {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
            flags += ["--distributed"]
        else:
            flags += [f"--coordinator=localhost:{port}", "--processes=2", f"--process-id={index}"]
        command = [sys.executable, "-m", "segjax", *argv, *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        runs.append(subprocess.Popen(command, env={**env, **own}, **pipes))
    return runs


def in_two(argv: Sequence[str], cache: pathlib.Path, *, path: str = "") -> list[str]:
    """What each process, of a device each, printed. Both end with exit code 0."""
    runs = start_two(argv, environment(cache, path=path))
    texts = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(texts)
    return texts
