"""What this machine reaches on its simplest work, measured in the same run: a square product and a copy, on each device at once."""

import time

import jax
import jax.numpy as jnp

from segjax.runtime import mesh as meshes

REPEATS = 5


def measure(mesh: jax.sharding.Mesh, dtype: str) -> dict[str, object]:
    """{"matmul_flops", "copy_bytes"}: operations and bytes (read and written) a second of ONE device, the best of a few tries; sizes."""
    small = mesh.devices.flat[0].platform == "cpu"
    side, floats = (1024, 2**24) if small else (8192, 2**29)
    rows = jax.ShapeDtypeStruct((mesh.size * side, side), dtype)
    place = meshes.batch_sharding(mesh)
    draw = jax.jit(lambda key: jax.random.normal(key, rows.shape, rows.dtype), out_shardings=place)
    left, right = (
        draw(jax.random.key(0)),
        jax.device_put(jax.random.normal(jax.random.key(1), (side, side), dtype), meshes.replicated(mesh)),
    )
    product = _best(jax.jit(jnp.matmul, out_shardings=place), left, right)
    line = jax.jit(lambda: jnp.ones((mesh.size * floats,), jnp.float32), out_shardings=place)()
    copy = _best(jax.jit(lambda x: x + 1, out_shardings=place), line)
    return {
        "matmul_flops": 2.0 * side**3 / product,
        "copy_bytes": 2.0 * 4 * floats / copy,
        "matmul_side": side,
        "matmul_dtype": dtype,
        "copy_mb": 4 * floats / 1e6,
    }


def _best(call, *arguments) -> float:
    jax.block_until_ready(call(*arguments))
    found = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        found.append(time.perf_counter() - begun)
    return min(found)
