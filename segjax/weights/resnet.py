"""Names of the public ResNets: torchvision's, mmsegmentation's ResNetV1c, and DeepLabV2's of AdaptSegNet and ADVENT (one or two levels).

A parameter may sit under `backbone/` (in a DeepLabV2) or at the top (a bare ResNet): the network's own tree decides.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, IDENTITY, Layout, Public, Rule, Transform

IGNORED = (r".*\.num_batches_tracked",)
NORM = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)


def backbone(conv1: str = "conv1", bn1: str = "bn1") -> tuple[Rule, ...]:
    """The stem under their names, and in every stage the first block and the scanned rest, which starts at block 1."""
    at = "(?:backbone/)?"
    rules = [Rule(f"params/{at}conv1/kernel", f"{conv1}.weight", CONV)]
    rules += [Rule(f"{kind}/{at}bn1/{ours}", f"{bn1}.{theirs}") for kind, ours, theirs in NORM]
    for stage, block, first in ((r"layer(\d)_0", "0", 0), (r"layer(\d)_rest", "{i}", 1)):
        rules.append(Rule(f"params/{at}{stage}/conv(\\d)/kernel", f"layer{{0}}.{block}.conv{{1}}.weight", CONV, first))
        rules.append(Rule(f"params/{at}{stage}/downsample_conv/kernel", f"layer{{0}}.{block}.downsample.0.weight", CONV, first))
        for kind, ours, theirs in NORM:
            rules.append(Rule(f"{kind}/{at}{stage}/bn(\\d)/{ours}", f"layer{{0}}.{block}.bn{{1}}.{theirs}", IDENTITY, first))
            rules.append(Rule(f"{kind}/{at}{stage}/downsample_bn/{ours}", f"layer{{0}}.{block}.downsample.1.{theirs}", IDENTITY, first))
    return tuple(rules)


def atrous(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The four branches of an atrous classifier, stacked here and a ModuleList `conv2d_list` there."""
    names: tuple[tuple[str, str, Transform], ...] = (("kernel", "weight", CONV), ("bias", "bias", IDENTITY))
    return tuple(Rule(f"params/{ours}/{a}", f"{theirs}.conv2d_list.{{i}}.{b}", transform) for a, b, transform in names)


def _deep_stem() -> tuple[Rule, ...]:
    """The three convolutions and BatchNorms of ResNetV1c, by their places in its Sequential."""
    rules = [Rule(r"params/(?:backbone/)?stem_(\d)/kernel", "stem.{0}.weight", CONV)]
    return (*rules, *(Rule(f"{kind}/(?:backbone/)?stem_(\\d)/{ours}", f"stem.{{0}}.{theirs}") for kind, ours, theirs in NORM))


V1C = Layout("resnet_v1c", (*_deep_stem(), *backbone()), (*IGNORED, r"(fc|head\.fc)\.(weight|bias)"))
"""open-mmlab's resnet50_v1c and resnet101_v1c; an ImageNet classifier is left out."""
TORCHVISION = Layout("resnet_torchvision", backbone(), (*IGNORED, r"fc\.(weight|bias)"))
"""torchvision.models.resnet50/101; the ImageNet classifier `fc` has no place in a segmentation network and is left out."""
CAFFE = Layout("resnet_caffe", backbone(), (*IGNORED, r"layer[56]\..*", r"fc\.(weight|bias)"))
"""The backbone of a DeepLabV2 file, for a network with another head: `--layout=resnet_caffe --prefix=backbone`."""
SINGLE = Layout("deeplabv2_resnet", (*backbone(), *atrous("classifier", "layer5")), IGNORED)
"""One level: `layer5` on layer4 (DeepLab_resnet_pretrained_init, FDA, DACS)."""
MULTI = Layout("deeplabv2_resnet", (*backbone(), *atrous("classifier", "layer6"), *atrous("aux_classifier", "layer5")), IGNORED)
"""Two levels: `layer6` on layer4 and the auxiliary `layer5` on layer3 (AdaptSegNet, ADVENT); ADVENT's one level is `layer6` alone."""


def _deeplab_form(keys: Iterable[str]) -> Layout:
    return MULTI if any(key.startswith("layer6.") or "aux_classifier/" in key for key in keys) else SINGLE


def depths(source: Mapping[str, np.ndarray], name: str, stem: str = "conv1.weight") -> tuple[int, ...]:
    """Blocks of each stage. WeightsError, which calls the layout `name`: no ResNet with bottlenecks whose stem holds `stem`."""
    found = tuple(len({key.split(".")[1] for key in source if key.startswith(f"layer{n}.")}) for n in range(1, 5))
    if stem not in source or 0 in found or "layer1.0.conv3.weight" not in source:
        raise WeightsError(
            f"layout {name}: no ResNet with bottlenecks ({stem}, layer1..layer4 with conv1..conv3): found {sorted(source)[:10]}"
        )
    return found


def named_depth(source: Mapping[str, np.ndarray], name: str, last: str, stem: str = "conv1.weight") -> str:
    """resnet50 or resnet101, for a segmentation network whose classifier is `last`. WeightsError: another depth, or no such classifier."""
    names: dict[tuple[int, ...], str] = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
    found = depths(source, name, stem)
    if found not in names or last not in source:
        raise WeightsError(f"layout {name}: blocks {found} and {last!r}: expected {list(names)} and an atrous classifier")
    return names[found]


def _bare(source: Mapping[str, np.ndarray], name: str, style: str, stem: str = "conv1.weight") -> dict[str, Any]:
    form = {"depth": depths(source, name, stem), "width": int(source[stem].shape[0]), "style": style}
    return {"make": "segjax.nets.resnet:ResNet", **form}


def _deeplab_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    head = "layer6" if _deeplab_form(source) is MULTI else "layer5"
    last = f"{head}.conv2d_list.0.bias"
    return {
        "make": "segjax.nets.deeplab:DeepLabV2",
        "backbone": named_depth(source, "deeplabv2_resnet", last),
        "num_classes": int(source[last].shape[0]),
        "multi_level": head == "layer6" and any(key.startswith("layer5.") for key in source),
        "width": int(source["conv1.weight"].shape[0]),
    }


RESNET_TORCHVISION = Public(
    "resnet_torchvision",
    recognises=lambda keys: {"conv1.weight", "layer4.0.conv3.weight"} <= set(keys) and not any(".conv2d_list." in key for key in keys),
    layout=lambda keys: TORCHVISION,
    model=lambda source, config: _bare(source, "resnet_torchvision", "torchvision"),
)
RESNET_CAFFE = Public(
    "resnet_caffe",
    recognises=lambda keys: False,  # only when asked for: it leaves the classifier out
    layout=lambda keys: CAFFE,
    model=lambda source, config: _bare(source, "resnet_caffe", "caffe"),
    reversible=False,
)
RESNET_V1C = Public(
    "resnet_v1c",
    recognises=lambda keys: {"stem.6.weight", "layer4.0.conv3.weight"} <= set(keys),
    layout=lambda keys: V1C,
    model=lambda source, config: _bare(source, "resnet_v1c", "v1c", "stem.6.weight"),
)
DEEPLABV2_RESNET = Public(
    "deeplabv2_resnet",
    recognises=lambda keys: "conv1.weight" in keys and bool({f"layer{n}.conv2d_list.0.weight" for n in (5, 6)} & set(keys)),
    layout=_deeplab_form,
    model=_deeplab_model,
)
