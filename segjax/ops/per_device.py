"""How much of a global array one device holds, for forms that are chosen by it while a program is traced."""

import math

import jax
from jax.sharding import AxisType

from segjax.typing import Array


def images_of_a_device(x: Array) -> int:
    """Rows of a batch [B,...] on each device of the mesh that they are spread over; B where the devices do not divide them, where there is
    no mesh, and within a `shard_map`, whose arrays are one device's already."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = (size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind is not AxisType.Manual)
    devices = math.prod(sizes)
    return x.shape[0] // devices if x.shape[0] % devices == 0 else x.shape[0]
