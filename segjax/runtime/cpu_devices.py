"""How many devices a CPU is to jax: one, or two that share its cores."""

import os

import jax


def share_cores() -> None:
    """Makes two devices of the CPU, for work that goes image by image and needs nothing of another image.

    Two images are then under way at once, and what one leaves idle the other uses: some convolutions run on one core alone, and every
    operation ends with threads that wait (`scripts/bench_refine.py`, with and without --one-device). Weights, and what an image leaves
    between two layers, are held twice. Call before the first device is touched; GPUs and TPUs are as they were. Nothing changes on a
    single core, where JAX_NUM_CPU_DEVICES or XLA_FLAGS say how many devices there are, or where jax has begun already.
    """
    count = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]  # jax adds options at run time
    if count > 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or (os.cpu_count() or 1) < 2:
        return
    try:
        jax.config.update("jax_num_cpu_devices", 2)
    except RuntimeError:  # a notebook, where devices are in use
        pass
