"""Names of DeepLabV2 on VGG16 as AdaptSegNet stores it (`model/deeplab_vgg.py`): torchvision's indices without pool4 and pool5."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, Layout, Public, Rule
from segjax.weights.resnet import atrous

DEEPLABV2 = Layout(
    "deeplabv2_vgg16",
    (
        Rule(r"params/features/features_(\d+)/kernel", "features.{0}.weight", CONV),
        Rule(r"params/features/features_(\d+)/bias", "features.{0}.bias"),
        *atrous("classifier", "classifier"),
    ),
)
_STAGES = (0, 5, 10, 17, 23)  # the first convolution of each stage


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    needed = [f"features.{n}.weight" for n in (*_STAGES, 29)] + ["classifier.conv2d_list.0.bias"]
    absent = [key for key in needed if key not in source]
    if absent:
        raise WeightsError(f"layout deeplabv2_vgg16: lacks {', '.join(absent)}: found {sorted(source)[:10]}")
    return {
        "make": "segjax.nets.deeplab:DeepLabV2",
        "num_classes": int(source["classifier.conv2d_list.0.bias"].shape[0]),
        "backbone": "vgg16",
        "vgg_widths": tuple(int(source[f"features.{n}.weight"].shape[0]) for n in _STAGES),
        "vgg_fc": int(source["features.29.weight"].shape[0]),
    }


DEEPLABV2_VGG16 = Public(
    "deeplabv2_vgg16",
    recognises=lambda keys: {"features.0.weight", "classifier.conv2d_list.0.weight"} <= set(keys),
    layout=lambda keys: DEEPLABV2,
    model=_model,
)
