"""Names of ProDA's network in its own checkpoints and in DiGA's: another stem, another name of the head, other images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.weights.engine import CONV, DENSE, IDENTITY, Layout, Public, Rule
from segjax.weights.resnet import IGNORED, NORM, backbone, named_depth


def _head(theirs: str) -> tuple[Rule, ...]:
    """Five branches, squeeze and excitation, the bottleneck with its GroupNorm, the classifier without a bias."""
    branch, affine = f"{theirs}.conv2d_list.{{0}}", (("scale", "weight"), ("bias", "bias"))
    rules = [
        Rule(r"params/head/branch(\d)_conv/kernel", f"{branch}.0.weight", CONV),
        Rule(r"params/head/branch(\d)_conv/bias", f"{branch}.0.bias"),
        Rule("params/head/bottleneck_conv/kernel", f"{theirs}.bottleneck.1.weight", CONV),
        Rule("params/head/bottleneck_conv/bias", f"{theirs}.bottleneck.1.bias"),
        Rule("params/head/classifier/kernel", f"{theirs}.head.1.weight", CONV),
    ]
    for ours, place in (("squeeze", 0), ("excite", 2)):
        for a, b, transform in (("kernel", "weight", DENSE), ("bias", "bias", IDENTITY)):
            rules.append(Rule(f"params/head/squeeze_excite/{ours}/{a}", f"{theirs}.bottleneck.0.se.{place}.{b}", transform))
    for a, b in affine:
        rules.append(Rule(rf"params/head/branch(\d)_norm/{a}", f"{branch}.1.{b}"))
        rules.append(Rule(f"params/head/bottleneck_norm/{a}", f"{theirs}.bottleneck.2.{b}"))
    rules += [Rule(f"{kind}/bn_pretrain/{a}", f"bn_pretrain.{b}") for kind, a, b in NORM]
    return tuple(rules)


PRODA_LAYOUT = Layout("proda", (*backbone(), *_head("layer5")), IGNORED)
DIGA_LAYOUT = Layout("diga", (*backbone("layer0.0", "layer0.1"), *_head("final")), IGNORED)


def _model(source: Mapping[str, np.ndarray], name: str, stem: str, head: str, normalization: str) -> dict[str, Any]:
    last = f"{head}.head.1.weight"
    return {
        "make": "segjax.nets.proda:ProDA",
        "backbone": named_depth(source, name, last, stem),
        "num_classes": int(source[last].shape[0]),
        "width": int(source[stem].shape[0]),
        "channels": int(source[last].shape[1]),
        "normalization": normalization,
        "extra_norm": "bn_pretrain.weight" in source,
    }


PRODA = Public(
    "proda",
    recognises=lambda keys: {"conv1.weight", "layer5.conv2d_list.0.0.weight"} <= set(keys),
    layout=lambda keys: PRODA_LAYOUT,
    model=lambda source, config: _model(source, "proda", "conv1.weight", "layer5", "none"),
)
"""microsoft/ProDA: one network of `{"ResNet101": {"model_state": ...}}`; images are RGB in [0,1] as they are."""
DIGA = Public(
    "diga",
    recognises=lambda keys: {"layer0.0.weight", "final.conv2d_list.0.0.weight"} <= set(keys),
    layout=lambda keys: DIGA_LAYOUT,
    model=lambda source, config: _model(source, "diga", "layer0.0.weight", "final", "caffe_128"),
)
"""fy-vision/DiGA: `student.pth`, `teacher.pth`."""
