"""How much of a TPU's vector memory one operation may take for its windows: most of what decides how long a step takes to compile.

The compiler unrolls an operation over the window that it works on, so large windows make long programs. Its own choice is 16 MiB on v5e
and 32 MiB on v6e. With 13 MiB DeepLabV2-R101's step compiles in 0.8 and 0.45 of the time, at 4 % more cycles by the compiler's
estimate, which leaves out that a program's own code is loaded too (docs/throughput.md). Another choice:
LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=N.
"""

import os
import re

from jax.sharding import Mesh

OPTION = "xla_tpu_scoped_vmem_limit_kib"
KIB = 13 * 1024


def options(mesh: Mesh) -> dict[str, str]:
    """XLA's options for a program on this mesh: on TPUs `OPTION`, unless LIBTPU_INIT_ARGS sets it; none elsewhere."""
    if mesh.devices.flat[0].platform != "tpu" or OPTION in os.environ.get("LIBTPU_INIT_ARGS", ""):
        return {}
    return {OPTION: str(KIB)}


def too_little(message: str) -> str | None:
    """In one line, what a compiler's error says of a kernel that takes more than its limit; None for another error. XLA's own operations
    fit any limit, a fork's Pallas kernels may not."""
    if not (found := re.search(r"Scoped allocation with size (\S+) and limit (\S+) exceeded", message)):
        return None
    kernel = re.search(r'op_name="([^"]*)"', message)
    of = f" ({kernel[1]})" if kernel else ""
    return f"a kernel{of} takes {found[1]} of vector memory, the limit is {found[2]}: LIBTPU_INIT_ARGS=--{OPTION}=N, in KiB, sets another"
