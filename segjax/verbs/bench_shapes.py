"""Shapes of everything that a training stage's step reads, from its values alone: no data, no weights, no earlier stage need be there."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError, WeightsError
from segjax.runtime.mesh import AXES
from segjax.verbs import build, frozen, stages, variables

_ENCODER = "backbone"
_EARLIER = re.compile(r"\{stage:([^{}]*)\}/([\w.]+)")


def batch(stage: build.Stage, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `rows` source rows as `data.pipeline` gives it; target rows in the stage's own proportion."""
    data, size = stage.spec["data"], stage.spec["batch_size"]
    found = _role("source", data, rows, labelled=True)
    if data.get("target"):
        target_rows = rows * (data.get("target_batch_size") or size) // size
        found |= _role("target", data, target_rows, labelled=bool(data.get("target_labels")))
    return found


def _role(role: str, data: Mapping[str, Any], rows: int, *, labelled: bool) -> dict[str, jax.ShapeDtypeStruct]:
    parts = data.get(f"{role}_crops") or ()
    first = parts if isinstance(parts, Mapping) else next(iter(parts), {})
    height, width = first.get("crop", data["crop"])
    array = lambda *shape: jax.ShapeDtypeStruct((rows, *shape), jnp.uint8)
    found = {f"{role}_image": array(height, width, 3)}
    if labelled:
        found[f"{role}_label"] = array(height, width)
    if data.get("part_ids") and "parts" in data[role]:
        found[f"{role}_part"] = array()
    return found


def frozen_weights(config, stage: build.Stage) -> Any:
    """Shapes of what the stage's method reads and never trains: from a file that is there, else from the earlier stage that would leave it.

    Without either, those of the network that the method has under the same name (its segmenter). A file that is the stage's own
    `model.weights`, too, has the network's shapes, those of its `backbone` alone where it has one (an ImageNet encoder). WeightsError:
    nothing tells.
    """
    found = {}
    for name, text in (build.plain(config.stages[stage.name]).get("frozen") or {}).items():
        earlier = _EARLIER.fullmatch(text) if isinstance(text, str) else None
        there = isinstance(text, str) and pathlib.Path(text).exists()
        if not there and build.is_network(own := stage.spec["method"].get(name)):
            found[name] = variables.shapes(build.network(own, f"config.stages.{stage.name}.method.{name}"))
        elif earlier is None and not there and text and text == stage.spec["model"].get("weights"):
            shapes = variables.shapes(stage.model)
            found[name] = {kind: {_ENCODER: tree[_ENCODER]} if _ENCODER in tree else tree for kind, tree in shapes.items()}
        elif earlier is None:
            paths = {name: pathlib.Path(text)} if there else frozen.files(stage)
            weights = frozen.load({name: paths[name]})[name]
            found[name] = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights)
        elif earlier[2] == "weights.safetensors":
            found[name] = variables.shapes(build.stage(config, earlier[1]).model)
        elif earlier[2] == "centroids.safetensors":
            found[name] = _centroids(stage)
        else:
            raise WeightsError(f"config.stages.{stage.name}.frozen.{name}={text!r}: its shapes are known once it is there: run the stage")
    return found or ()


def _centroids(stage: build.Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """What `segjax centroids` leaves: a mean feature and a count for each class of this stage's network."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    shapes = variables.shapes(stage.model)
    outputs = jax.eval_shape(lambda tree, image: stage.model.apply(tree, image, train=False), shapes, image)
    if "features" not in outputs:
        raise ConfigError(f"config.stages.{stage.name}.model gives no features, and centroids are made of them")
    classes, width = stage.model.num_classes, outputs["features"].shape[-1]
    return {"centroids": jax.ShapeDtypeStruct((classes, width), jnp.float32), "counts": jax.ShapeDtypeStruct((classes,), jnp.float32)}


def stage_of(config, name: str) -> build.Stage:
    """The stage `name`, or the only one that is trained. ConfigError asks for --stage when there are several."""
    trained = [each for each in build.stage_names(config) if stages.verb(config, each) == stages.TRAIN]
    if not name and len(trained) != 1:
        raise ConfigError(f"this config trains the stages {', '.join(trained) or 'none'}: pass --stage=NAME")
    return build.stage(config, name or trained[0])


def parse_mesh(text: str) -> dict[str, int]:
    """ "data=16,fsdp=16" -> {"data": 16, "fsdp": 16}. ConfigError for anything else."""
    found = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in AXES or not re.fullmatch(r"-?\d+", value):
            raise ConfigError(f"--mesh={text}: expected data=N,fsdp=M with whole numbers, e.g. --mesh=data=16,fsdp=16")
        found[key] = int(value)
    return found


def about(stage: build.Stage) -> dict[str, Any]:
    """What a row says of a stage."""
    spec = stage.spec
    return {
        "stage": stage.name,
        "method": spec["method"]["make"],
        "network": spec["model"]["make"],
        "dtype": spec["model"].get("dtype", "float32"),
        "crop": list(spec["data"]["crop"]),
    }


def parameters(tree: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return int(sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(tree)))
