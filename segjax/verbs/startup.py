"""What every verb that computes does first: join the other processes, if there are any, and keep compiled programs on disk."""

import os

import jax
from jax.experimental import multihost_utils

from segjax.errors import ConfigError
from segjax.runtime import compile


def begin() -> None:
    """Call before the first device is touched.

    Many processes: set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID in each of them, or SEGJAX_DISTRIBUTED=1
    where jax finds its cluster by itself (SLURM, TPU pods, Open MPI, Kubernetes). ConfigError when the three do not make sense.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if (address or os.environ.get("SEGJAX_DISTRIBUTED") == "1") and not jax.distributed.is_initialized():
        numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        try:
            count, index = (None if text is None else int(text) for text in numbers)
            jax.distributed.initialize(address, count, index)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"cannot join the other processes (JAX_COORDINATOR_ADDRESS={address}, JAX_NUM_PROCESSES={numbers[0]}, "
                f"JAX_PROCESS_ID={numbers[1]}): {' '.join(str(error).split())[:200]}"
            ) from None
    compile.enable_cache()


def barrier(name: str) -> None:
    """Waits for the other processes, so that none reads a file before the first one has written it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
