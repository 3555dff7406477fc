"""A stage's step for a mesh by shapes alone, whatever verb makes the stage: what `compile_step` takes, and what a row says of it.

A stage that is trained is built from its values (`bench_shapes`). Any other verb that has a step gives `step_shapes(config, name, mesh)`,
an object with `method`, `state`, `frozen`, `batch` and, where a row should say more, `about`.
"""

from typing import Any, NamedTuple

import jax

from segjax.errors import ConfigError
from segjax.runtime import mesh as meshes
from segjax.typing import Method
from segjax.verbs import bench_shapes, build, stages


class Step(NamedTuple):
    """about: what the row says. state, frozen, batch: ShapeDtypeStructs with shardings."""

    about: dict[str, Any]
    method: Method
    state: Any
    frozen: Any
    batch: Any


def of_stage(config, name: str, mesh: jax.sharding.Mesh, per_device: int) -> Step:
    """The step of a stage with `per_device` rows on each device of `mesh` (0: its batch_size on each). ConfigError: what has no step."""
    verb = stages.verb(config, name) if name else stages.TRAIN
    if verb == stages.TRAIN:
        return _trained(config, bench_shapes.stage_of(config, name), mesh, per_device)
    module = stages.module(config, name)
    if not hasattr(module, "step_shapes"):
        raise ConfigError(f"config.stages.{name} is made by `segjax {verb}`, which has no step to compile")
    each = per_device or config.stages[name].get("batch_size", 1)
    with config.unlocked():
        config.stages[name].batch_size = each * mesh.size
    found = module.step_shapes(config, name, mesh)
    about = {"stage": name, "verb": verb, **getattr(found, "about", {}), "rows_each": each}
    return Step(_counted(about, found.state), found.method, found.state, found.frozen, found.batch)


def _trained(config, stage: build.Stage, mesh: jax.sharding.Mesh, per_device: int) -> Step:
    each = per_device or stage.spec["batch_size"]
    shapes = bench_shapes.batch(stage, each * mesh.size)
    uneven = next((key for key, x in shapes.items() if x.shape[0] % mesh.size), None)
    if uneven:
        raise ConfigError(f"{shapes[uneven].shape[0]} rows of {uneven} do not divide over {mesh.size} chips: pass another --per-device")
    batch = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.batch_sharding(mesh)) for key, x in shapes.items()}
    state = jax.eval_shape(stage.method.init, jax.random.key(0), shapes)
    state = meshes.with_shardings(state, meshes.shard_rules(state, mesh, build.sharding_overrides(stage)))
    weights = bench_shapes.frozen_weights(config, stage)
    frozen = meshes.with_shardings(weights, meshes.shard_rules(weights, mesh))
    return Step(_counted({**bench_shapes.about(stage), "rows_each": each}, state), stage.method, state, frozen, batch)


def _counted(about: dict[str, Any], state: Any) -> dict[str, Any]:
    """With the number of parameters that train, where the state names them."""
    params = getattr(state, "params", None)
    return about if params is None else {**about, "parameters": bench_shapes.parameters(params)}
