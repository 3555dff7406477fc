"""Names of torchvision's VGG19, of which perceptual losses read the first thirteen convolutions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.weights.engine import CONV, Layout, Public, Rule

_STAGES = (0, 5, 10, 19, 28)  # the first convolution of each stage
LAYOUT = Layout(
    "vgg19_torchvision",
    (
        Rule(r"params/features_(\d+)/kernel", "features.{0}.weight", CONV),
        Rule(r"params/features_(\d+)/bias", "features.{0}.bias"),
    ),
    (r"features\.3[024]\.(weight|bias)", r"classifier\.\d+\.(weight|bias)"),
)


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    return {"make": "segjax.nets.perceptual:VGG19", "widths": tuple(int(source[f"features.{n}.weight"].shape[0]) for n in _STAGES)}


VGG19_TORCHVISION = Public(
    "vgg19_torchvision",
    # VGG16 ends before 34, the form with BatchNorm has its first one at 1
    recognises=lambda keys: {"features.0.weight", "features.34.weight"} <= set(keys) and "features.1.weight" not in keys,
    layout=lambda keys: LAYOUT,
    model=_model,
    reversible=False,  # what lies behind conv5_1 is left out
)
