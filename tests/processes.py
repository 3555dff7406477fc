"""The same `segjax` command in two processes that know of each other."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from segjax import cli


def in_two(argv: Sequence[str], cache: pathlib.Path, *, path: str = "") -> list[str]:
    """What each process printed. cache: folder of compiled programs. path: one more folder to import from. Both end with exit code 0."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)  # a device each
    shared = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    shared["PYTHONPATH"] = os.pathsep.join([path, str(pathlib.Path(cli.__file__).parents[1])])
    shared["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "segjax", *argv]
    environments = [{**os.environ, **shared, "JAX_PROCESS_ID": str(i)} for i in range(2)]
    runs = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for env in environments]
    texts = [run.communicate(timeout=240)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(texts)
    return texts
