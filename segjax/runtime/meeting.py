"""Processes become one run: a connection of their own first, whose errors are one line, then jax's, whose errors end a process at once."""

import contextlib
import dataclasses
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from segjax.errors import ConfigError
from segjax.runtime import links, peers, relay
from segjax.runtime.cluster import Cluster

HEARTBEAT, TIMEOUT = "SEGJAX_HEARTBEAT", "SEGJAX_JOIN_TIMEOUT"
"""Seconds after which a silent process is given up (default 60), and that processes wait for each other at the start (default 300)."""
_TOLD_BYTES = 512


def join(cluster: Cluster, check: Callable[[], Any]) -> None:
    """Connects this process to the others and starts `jax.distributed`. Call before a device is touched.

    check: called once all are connected, where possible before jax is: processes of different jax versions need not understand each other.
    Errors as `links.gather` and `links.reach` have them. Where jax finds the address by itself it waits first, with errors of its own.
    """
    heartbeat, seconds = _seconds(os.environ, HEARTBEAT, 60.0), _seconds(os.environ, TIMEOUT, 300.0)
    if cluster.address is not None and cluster.count is not None and cluster.index is not None:
        if cluster.count > 1:
            _meet(cluster.address, cluster.count, cluster.index, seconds=seconds, heartbeat=heartbeat)
            check()
        with relay.to(cluster.address) if cluster.index else contextlib.nullcontext(cluster.address) as address:
            known = dataclasses.replace(cluster, address=address)
            _initialize(known, seconds, heartbeat, cluster_detection_method="deactivate")
    else:
        _initialize(cluster, seconds, heartbeat)
        if jax.process_count() > 1:
            _meet_within(seconds, heartbeat)
            check()
    if jax.process_count() > 1:
        check_devices()
        _connect_devices()


def _initialize(cluster: Cluster, seconds: float, heartbeat: float, **options: Any) -> None:
    times = {"initialization_timeout": max(int(seconds), 10), "heartbeat_timeout_seconds": max(int(1.5 * heartbeat), 2)}
    try:
        jax.distributed.initialize(
            cluster.address, cluster.count, cluster.index, local_device_ids=cluster.local_devices, **times, **options
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        way = "jax knows SLURM, Cloud TPU, Open MPI, and Kubernetes with its `kubernetes` package; else pass --coordinator=HOST:PORT"
        raise ConfigError(f"cannot join the other processes ({reason}): {way} --processes=N --process-id=I") from None


def _meet(address: str, count: int, index: int, *, seconds: float, heartbeat: float) -> None:
    """At the address of jax's own service, which is free again when all are there."""
    host, _, port = address.rpartition(":")
    if index == 0:
        opened, hosts = links.gather(links.listen(int(port)), count, seconds, address)
    else:
        link, hosts = links.reach([(host.strip("[]"), int(port))], index, count, seconds)
        opened = {0: link}
    peers.begin(index, opened, hosts, heartbeat)


def _meet_within(seconds: float, heartbeat: float) -> None:
    """After jax has connected the processes: process 0 tells them over the devices where it listens."""
    check_devices()  # the exchange below needs them alike
    door = links.listen(0) if jax.process_index() == 0 else None
    told = json.dumps([list(_addresses()), door.getsockname()[1]] if door else []).encode()[:_TOLD_BYTES]
    padded = np.frombuffer(told.ljust(_TOLD_BYTES), np.uint8)
    hosts, port = json.loads(bytes(np.asarray(multihost_utils.process_allgather(padded))[0]))
    count, index = jax.process_count(), jax.process_index()
    if door:
        opened, names = links.gather(door, count, seconds, f"{hosts[0]}:{port}")
    else:
        link, names = links.reach([(host, port) for host in hosts], index, count, seconds)
        opened = {0: link}
    peers.begin(index, opened, names, heartbeat)


def _addresses() -> list[str]:
    """By what others may find this host: its name, and the address that it reaches others from."""
    found = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks the routing table
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return found


def _connect_devices() -> None:
    """A first sum over every device. It connects the CPUs of the processes, which must come within 30 s of each other: here they do, and
    after a long compilation perhaps not."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
    ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, PartitionSpec("all")), lambda index: np.ones(1, np.float32))
    peers.exchange("connect")
    jax.block_until_ready(jax.jit(jnp.sum)(ones))


def check_devices() -> None:
    """ConfigError, alike in every process, when they have different numbers of devices: a mesh cannot be made of those."""
    counts = Counter(device.process_index for device in jax.devices())
    usual = counts[0]
    if other := next((index for index in sorted(counts) if counts[index] != usual), None):
        raise ConfigError(
            f"process {other} has {counts[other]} devices and process 0 has {usual}: give all as many (CUDA_VISIBLE_DEVICES, "
            "JAX_NUM_CPU_DEVICES, XLA_FLAGS), or look for a broken one"
        )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise ConfigError(f"{name}={text}: expected a number of seconds, 1 or more")
    return value
