"""The features of a network whose encoder never learned: DAFormer's frozen ImageNet copy."""

import inspect
from typing import Any

import jax

from segjax.errors import ConfigError
from segjax.typing import Array, Frozen

NAME, ENCODER = "imagenet", "backbone"


def imagenet_features(model: Any, variables: dict[str, Any], frozen: Frozen, image: Array) -> Array:
    """ "features" of a float image by `model` with the encoder in `frozen["imagenet"]`, in evaluation mode and without gradient.

    That may be an encoder by itself or a network that has one as `backbone`; an encoder-less network (ENet) is replaced whole. The other
    parts are those of `variables`: no feature depends on them, and they are not computed.
    ConfigError: the stage has no such weights, or those of another architecture; a network that gives no features.
    """
    if not isinstance(frozen, dict) or NAME not in frozen:
        raise ConfigError(
            "method.feature_weight > 0 needs the encoder as ImageNet left it: set the stage's "
            'frozen={"imagenet": FILE} (`segjax convert` of the MiT or ResNet file), or feature_weight=0'
        )
    whole = ENCODER not in variables["params"]
    merged = {kind: _merged(tree, frozen[NAME].get(kind, {}), kind, whole) for kind, tree in variables.items()}
    encoder = {"head": False} if "head" in inspect.signature(type(model).__call__).parameters else {}
    outputs = model.apply(merged, image, train=False, **encoder)
    if "features" not in outputs:
        raise ConfigError(f"method.feature_weight > 0 reads features, and {type(model).__name__} gives {', '.join(outputs)} alone")
    return jax.lax.stop_gradient(outputs["features"])


def _merged(own: Any, frozen: Any, kind: str, whole: bool) -> dict[str, Any]:
    """`own` with its encoder replaced, or all of it. ConfigError: what does not fit."""
    new = frozen if whole or ENCODER in frozen else {ENCODER: frozen}
    old = own if whole else {name: part for name, part in own.items() if name == ENCODER}
    new = {name: new.get(name, {}) for name in old}
    shapes = lambda tree: {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    before, after = shapes(old), shapes(new)
    if before != after:
        odd = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        has, wants = after.get(odd[0], "nothing"), before.get(odd[0], "nothing")
        raise ConfigError(f'frozen["{NAME}"]: {kind}{odd[0]} is {has}, the network has {wants} ({len(odd)} differ): another encoder')
    return {**own, **new}
