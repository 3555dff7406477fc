"""The device mesh, and where every array lives on it: parameters by rule, batches by rows."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.errors import ConfigError
from segjax.runtime.state import path_name

AXES = ("data", "fsdp")
Overrides = Sequence[tuple[str, PartitionSpec]]


def make_mesh(data: int = -1, fsdp: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh of `data` x `fsdp` devices; -1 for `data` takes all that `fsdp` leaves.

    The batch is split over both axes, parameters over "fsdp". In one process a mesh smaller than the machine takes its first
    devices; many processes must use every device. Raises ConfigError when the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise ConfigError(f"mesh data={data} fsdp={fsdp}: sizes are positive, or -1 for data to take every device that is left")
    if data == -1:
        if count % fsdp:
            raise ConfigError(f"mesh fsdp={fsdp} does not divide {count} devices: choose a divisor of {count}")
        data = count // fsdp
    used = data * fsdp
    if used > count or (jax.process_count() > 1 and used != count):
        raise ConfigError(f"mesh data={data} x fsdp={fsdp} needs {used} devices and there are {count}: set mesh.data=-1, mesh.fsdp=1")
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:used])


def replicated(mesh: Mesh) -> NamedSharding:
    """One copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The values of `tree`, which every process has alike, on every device of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    # device_put takes host values alone to other processes' devices, and a key is none.
    put = lambda leaf: jax.device_put(np.asarray(leaf), replicated(mesh))
    wrapped = jax.jit(jax.random.wrap_key_data, out_shardings=replicated(mesh))
    return jax.tree.map(lambda leaf: wrapped(put(jax.random.key_data(leaf))) if is_key(leaf) else put(leaf), tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_rules(tree, mesh: Mesh, overrides: Overrides = (), *, min_size: int = 2**14):
    """A NamedSharding for each leaf of a tree of arrays or ShapeDtypeStructs.

    Rule: the largest dimension that "fsdp" divides is split over it (the last of equals); leaves of fewer than `min_size`
    elements are replicated. `overrides` are (regex, PartitionSpec) pairs, searched in the leaf's path (`params/conv/kernel`;
    `opt_state/...` and `ema_params/...` end alike, so an unanchored pattern moves a parameter with its moments and its teacher).
    The first match wins. Raises ConfigError for a pattern that matches nothing, an unknown axis or a size that does not divide.
    """
    unused = {pattern for pattern, _ in overrides}

    def rule(path, leaf) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in overrides:
            if re.search(pattern, name):
                unused.discard(pattern)
                _check_spec(name, leaf.shape, spec, mesh)
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, _largest_dimension(leaf.shape, mesh.shape["fsdp"], min_size))

    shardings = jax.tree_util.tree_map_with_path(rule, tree)
    if unused:
        names = [path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if len(leaf.shape) > 1]
        raise ConfigError(f"sharding override {sorted(unused)[0]!r} matches no array; the paths look like {', '.join(names[:3])}")
    return shardings


def _largest_dimension(shape: tuple[int, ...], parts: int, min_size: int) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or int(np.prod(shape)) < min_size or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda a: (shape[a], a))
    return PartitionSpec(*([None] * axis), "fsdp")


def _check_spec(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        raise ConfigError(f"sharding override {spec} of {name} has more entries than its shape {shape}")
    for size, axes in zip(shape, spec, strict=False):
        axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ConfigError(f"sharding override {spec} of {name}: the mesh has the axes {AXES}, not {unknown[0]!r}")
        parts = int(np.prod([mesh.shape[axis] for axis in axes]))
        if size % parts:
            raise ConfigError(f"sharding override {spec} of {name}: size {size} does not divide by {parts}")


def with_shardings(tree, shardings):
    """ShapeDtypeStructs of `tree` that carry `shardings`: what compile and restore take."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def batch_spec(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Global shapes, dtypes and sharding of this process's numpy batch. Raises ConfigError when rows do not divide."""
    processes = jax.process_count()
    for name, value in batch.items():
        rows = value.shape[0] * processes
        if rows % mesh.size:
            shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
            near = max(rows // mesh.size, 1) * mesh.size
            raise ConfigError(
                f"a batch of {rows} rows ({name}) does not divide over {mesh.size} devices ({shape}): "
                f"set batch_size={near} (or another multiple of {mesh.size}), or mesh.data and mesh.fsdp to fewer devices"
            )
    sharding = batch_sharding(mesh)
    return {k: jax.ShapeDtypeStruct((v.shape[0] * processes, *v.shape[1:]), v.dtype, sharding=sharding) for k, v in batch.items()}


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Each process's rows of one global batch, placed over the mesh. Returns at once; the copy goes on behind.

    Rows are ordered by process. Raises ConfigError when the rows do not divide over the devices.
    """
    batch_spec(batch, mesh)
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
