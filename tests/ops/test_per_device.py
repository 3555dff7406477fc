import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from segjax.ops.per_device import images_of_a_device
from segjax.runtime.mesh import make_mesh


@pytest.mark.parametrize(("rows", "each"), [(8, 1), (24, 3), (6, 6)])
def test_images_of_a_device_under_jit_and_within_shard_map(rows, each):
    mesh, found, split = make_mesh(4, 2), [], PartitionSpec(("data", "fsdp"))

    def look(x):
        found.append(images_of_a_device(x))
        return x

    image = jax.ShapeDtypeStruct((rows, 2), jnp.float32)
    jax.eval_shape(look, image)  # no mesh
    with jax.set_mesh(mesh):
        jax.jit(look).trace(image)
    local = jax.ShapeDtypeStruct((8 * rows, 2), jnp.float32)  # `rows` on each device
    jax.jit(jax.shard_map(look, mesh=mesh, in_specs=split, out_specs=split)).trace(local)
    assert found == [rows, each, rows]
