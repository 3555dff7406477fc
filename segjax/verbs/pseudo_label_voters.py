"""The networks whose mean labels images: of a config's stages, or of weights files that say themselves what they are."""

import json
import pathlib
from typing import Any

import optax

from segjax.errors import WeightsError
from segjax.nets.apply import full_size_logits, to_float
from segjax.verbs import build, evaluate, networks, variables
from segjax.verbs.pseudo_label_network import Voter
from segjax.weights import safetensors_io


def of_stage(config, name: str, path: pathlib.Path, origin: str = "") -> Voter:
    """The network and method of a stage with the weights in a file. origin: what to call it, default the stage's name.

    WeightsError: no such file, or of another network.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file: train stage {name} first, or pass --weights=FILE")
    network = evaluate.from_file(build.stage(config, name), path, path.parent)
    method, model = network.stage.method, network.stage.model
    grey = bool(network.stage.spec["method"].get("greyscale"))
    sha256 = safetensors_io.sha256(path)
    about = (network.space, network.first, grey, origin or name, sha256)
    return Voter(method.predict, network.state, model.align_corners, *about, features=_features(model))


def of_file(path: pathlib.Path) -> Voter:
    """A trained segjax file or a public checkpoint. WeightsError: not to be read, or no segmentation network."""
    network = networks.load(path)
    model = network.module
    if not hasattr(model, "num_classes") or hasattr(model, "example"):
        raise WeightsError(f"{path}: is a {type(model).__name__}, which gives no class to every pixel")
    space, first = build.output_space(network.metadata.get("label_space", ""), model.num_classes, str(path))
    told = json.loads(network.metadata.get("method", "{}"))
    predict, state = _method(told, network, str(path)) if told else (_plain(model), dict(network.variables))
    sha256 = ",".join(networks.hashes(path).values())
    grey = bool(told.get("greyscale"))
    return Voter(predict, state, model.align_corners, space, first, grey, str(path), sha256, features=_features(model))


def _features(model: Any):
    """The features of a voter, from a method's state or from plain variables. WeightsError when the network gives none."""

    def features(state: Any, image: Any) -> Any:
        variables = state if isinstance(state, dict) else state.ema_variables
        outputs = model.apply(variables, to_float(image), train=False)
        if "features" not in outputs:
            raise WeightsError(f"consensus reads features, and {type(model).__name__} gives {', '.join(outputs)} alone")
        return outputs["features"]

    return features


def _plain(model: Any):
    return lambda variables, frozen, image: full_size_logits(model, variables, image)


def _method(told: dict[str, Any], network: networks.Network, where: str) -> tuple[Any, Any]:
    """`predict` of the method that trained a file, which may look at images in its own way, and a state for it."""
    method = build.resolve(build.plain(told), where, model=network.module, optimizer=optax.identity())
    stage = build.Stage("", 0, {}, network.module, method)
    return method.predict, variables.into_state(stage, dict(network.variables), evaluate.batch_shapes())
