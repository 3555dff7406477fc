"""Which processes make up a run: flags or their environment variables say it, SLURM, Open MPI or Kubernetes fill in, jax finds the rest."""

import dataclasses
import re
from collections.abc import Mapping

from segjax.errors import ConfigError

ADDRESS, COUNT, INDEX, DETECT = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SEGJAX_DISTRIBUTED"
FLAGS = {"--coordinator": ADDRESS, "--processes": COUNT, "--process-id": INDEX, "--distributed": DETECT}
_SLURM = "SLURM"
_LAUNCHERS = {
    _SLURM: (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), "SLURM_PROCID"),
    "Open MPI": (("OMPI_COMM_WORLD_SIZE",), "OMPI_COMM_WORLD_RANK"),
    "Kubernetes": ((), "JOB_COMPLETION_INDEX"),  # an indexed job does not tell a pod how many there are
}
"""What tells a task how many there are (the first that is set) and its own number."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """address: host:port of process 0; None leaves address, count and index to jax. local_devices: this process's, None for all it sees."""

    address: str | None
    count: int | None
    index: int | None
    local_devices: tuple[int, ...] | None = None


def find(environ: Mapping[str, str]) -> Cluster | None:
    """The run's processes, or None for a run of one. ConfigError: what is given is incomplete or contradictory.

    Taken part in when an address is given, or with SEGJAX_DISTRIBUTED=1. A task that a launcher started takes number and count from it.
    """
    address, count, index = environ.get(ADDRESS) or None, _number(environ, COUNT, 1), _number(environ, INDEX, 0)
    if address is None and environ.get(DETECT, "0") in ("", "0"):
        if index or (count or 1) > 1:
            raise ConfigError(f"{_given(environ)} without --coordinator=HOST:PORT ({ADDRESS}): where is process 0?")
        return None
    name, tasks, task = _launcher(environ)
    for flag, variable, given, told in (("--processes", COUNT, count, tasks), ("--process-id", INDEX, index, task)):
        if None not in (given, told) and given != told:
            raise ConfigError(f"{flag}={given} ({variable}), but {name} says {told}: leave {flag} out, or start it without {name}")
    count, index = count if tasks is None else tasks, index if task is None else task
    if address is None and name != _SLURM:
        return Cluster(None, count, index)
    address = address or _first_host(environ)
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):\d{1,5}", address) or not 0 < int(address.rpartition(":")[2]) < 65536:
        raise ConfigError(f"--coordinator={address} ({ADDRESS}): expected HOST:PORT, a host and a free port of process 0")
    if count is None or index is None:
        missing = [f"{flag} ({FLAGS[flag]})" for flag, value in (("--processes", count), ("--process-id", index)) if value is None]
        raise ConfigError(f"--coordinator={address} without {' and '.join(missing)}, and no SLURM or MPI that tells it")
    if index >= count:
        raise ConfigError(f"--process-id={index} of --processes={count}: they are numbered 0 to {count - 1}")
    return Cluster(address, count, index, _local_devices(environ) if name == _SLURM else None)


def _given(environ: Mapping[str, str]) -> str:
    return " ".join(f"{flag}={environ[variable]}" for flag, variable in FLAGS.items() if environ.get(variable))


def _number(environ: Mapping[str, str], variable: str, least: int) -> int | None:
    text = environ.get(variable) or None
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        flag = next((flag for flag, name in FLAGS.items() if name == variable), "")
        raise ConfigError(f"{variable}={text}{f' ({flag})' if flag else ''}: expected a number of {least} or more")
    return int(text)


def _launcher(environ: Mapping[str, str]) -> tuple[str, int | None, int | None]:
    """(name, tasks, this task) of the launcher that started this process; ("", None, None) without one."""
    for name, (counts, own) in _LAUNCHERS.items():
        if environ.get(own):
            count = next((variable for variable in counts if environ.get(variable)), "")
            return name, _number(environ, count, 1), _number(environ, own, 0)
    return "", None, None


def _first_host(environ: Mapping[str, str]) -> str:
    """host:port of SLURM's first node, as jax chooses it: 'node[007-9,12]' -> node007, a port of the job's own."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "localhost"
    host = re.sub(r"\[(\w+).*", r"\1", nodes).split(",")[0]
    port = environ.get("JAX_COORDINATOR_PORT") or 65536 - 4096 + (_number(environ, "SLURM_JOB_ID", 0) or 0) % 4096
    return f"{host}:{port}"


def _local_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """A task that has its node to itself takes every GPU; of several, each takes its own, unless SLURM shows it no other."""
    alone = re.fullmatch(r"1(\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    bound = len(environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")) == 1
    local = _number(environ, "SLURM_LOCALID", 0)
    return None if alone or bound or local is None else (local,)
