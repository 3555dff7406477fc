"""Names of HRNet, bare as its ImageNet classifier holds it, and with OCR as the authors' HRNet-OCR branch and DiGA write it."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, IDENTITY, Layout, Public, Rule
from segjax.weights.resnet import IGNORED, NORM

STAGES = (2, 3, 4)
AUTHORS = {"first": "layer1", "transition": ("transition1", "transition2", "transition3")}
DIGA = {"first": "stage1", "transition": ("transition_stage_1_2", "transition_stage_2_3", "transition_stage_3_4")}


def _conv(ours: str, theirs: str, **scan: Any) -> list[Rule]:
    return [
        Rule(f"params/{ours}/kernel", f"{theirs}.weight", CONV, **scan),
        Rule(f"params/{ours}/bias", f"{theirs}.bias", IDENTITY, **scan),
    ]


def _norm(ours: str, theirs: str, **scan: Any) -> list[Rule]:
    return [Rule(f"{kind}/{ours}/{a}", f"{theirs}.{b}", IDENTITY, **scan) for kind, a, b in NORM]


def _unit(ours: str, conv: str, norm: str, **scan: Any) -> list[Rule]:
    return _conv(f"{ours}/conv", conv, **scan) + _norm(f"{ours}/norm", norm, **scan)


def backbone(prefix: str, names: Mapping[str, Any]) -> list[Rule]:
    """Stem, bottlenecks, and of each stage the transition that adds its branch, its branches and its fusions."""
    at = "(?:backbone/)?"
    rules = _unit(f"{at}stem(\\d)", f"{prefix}conv{{0}}", f"{prefix}bn{{0}}")
    for ours, block, first in (("layer1_0", "0", 0), ("layer1_rest", "{i}", 1)):
        block = f"{prefix}{names['first']}.{block}"
        rules += _conv(f"{at}{ours}/conv(\\d)", f"{block}.conv{{0}}", first=first)
        rules += _norm(f"{at}{ours}/bn(\\d)", f"{block}.bn{{0}}", first=first)
        rules += _conv(f"{at}{ours}/downsample_conv", f"{block}.downsample.0", first=first)
        rules += _norm(f"{at}{ours}/downsample_bn", f"{block}.downsample.1", first=first)
    for n, transition in enumerate(names["transition"], 1):
        new = f"{prefix}{transition}.{n}.0"  # the branch that this stage adds is a sequence of one
        rules += _unit(f"{at}transition{n}_{n}", f"{new}.0", f"{new}.1")
        kept = f"{prefix}{transition}.{{0}}"
        rules += _unit(f"{at}transition{n}_(\\d)", f"{kept}.0", f"{kept}.1")
    stage, module = f"{at}stage(\\d)", f"{prefix}stage{{0}}.{{i}}"
    block = f"{module}.branches.{{1}}.{{j}}"
    rules += _unit(f"{stage}/branch(\\d)/unit(\\d)", f"{block}.conv{{2}}", f"{block}.bn{{2}}", levels=2)
    finer = f"{module}.fuse_layers.{{1}}.{{2}}.{{3}}"
    rules += _unit(f"{stage}/fuse(\\d)_(\\d)_(\\d)", f"{finer}.0", f"{finer}.1")
    coarser = f"{module}.fuse_layers.{{1}}.{{2}}"
    return rules + _unit(f"{stage}/fuse(\\d)_(\\d)", f"{coarser}.0", f"{coarser}.1")


def _ocr(units: Mapping[str, tuple[str, str]], classifiers: Mapping[str, str]) -> list[Rule]:
    rules = [rule for ours, (conv, norm) in units.items() for rule in _unit(f"head/{ours}", conv, norm)]
    return rules + [rule for ours, theirs in classifiers.items() for rule in _conv(f"head/{ours}", theirs)]


_BLOCK = "ocr_distri_head.object_context_block"
_AUTHORS_OCR = _ocr(
    {
        "aux": ("aux_head.0", "aux_head.1"),
        "pixels": ("conv3x3_ocr.0", "conv3x3_ocr.1"),
        "query1": (f"{_BLOCK}.f_pixel.0", f"{_BLOCK}.f_pixel.1.0"),
        "query2": (f"{_BLOCK}.f_pixel.2", f"{_BLOCK}.f_pixel.3.0"),
        "key1": (f"{_BLOCK}.f_object.0", f"{_BLOCK}.f_object.1.0"),
        "key2": (f"{_BLOCK}.f_object.2", f"{_BLOCK}.f_object.3.0"),
        "value": (f"{_BLOCK}.f_down.0", f"{_BLOCK}.f_down.1.0"),
        "context": (f"{_BLOCK}.f_up.0", f"{_BLOCK}.f_up.1.0"),
        "fusion": ("ocr_distri_head.conv_bn_dropout.0", "ocr_distri_head.conv_bn_dropout.1.0"),
    },
    {"aux_classifier": "aux_head.3", "classifier": "cls_head"},
)
_RELATIONS = "ocrnet.pixel_region_relations"
_DIGA_OCR = _ocr(
    {
        "aux": ("ocrnet.soft_object_regions.0", "ocrnet.soft_object_regions.1"),
        "pixels": ("ocrnet.pixel_representations.0", "ocrnet.pixel_representations.1"),
        "query1": (f"{_RELATIONS}.pixel_rep.0", f"{_RELATIONS}.pixel_rep.1"),
        "query2": (f"{_RELATIONS}.pixel_rep.3", f"{_RELATIONS}.pixel_rep.4"),
        "key1": (f"{_RELATIONS}.obj_reg_rep.0", f"{_RELATIONS}.obj_reg_rep.1"),
        "key2": (f"{_RELATIONS}.obj_reg_rep.3", f"{_RELATIONS}.obj_reg_rep.4"),
        "value": ("ocrnet.value.0", "ocrnet.value.1"),
        "context": ("ocrnet.ocr_up.0", "ocrnet.ocr_up.1"),
        "fusion": ("ocrnet.augmented_rep.0", "ocrnet.augmented_rep.1"),
    },
    {"aux_classifier": "ocrnet.soft_object_regions.3", "classifier": "ocrnet.segmentation_classes.0"},
)
IMAGENET_LAYOUT = Layout(
    "hrnet_imagenet", tuple(backbone("", AUTHORS)), (*IGNORED, r"(incre_modules|downsamp_modules|final_layer|classifier)\..*")
)
OCR_LAYOUT = Layout("hrnet_ocr", (*backbone("", AUTHORS), *_AUTHORS_OCR), IGNORED)
DIGA_LAYOUT = Layout("diga_hrnet", (*backbone("hrnet.", DIGA), *_DIGA_OCR), IGNORED)


def _sizes(source: Mapping[str, np.ndarray], name: str, prefix: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """What the keys and shapes say of the backbone. WeightsError: they say none, or one whose stages are not alike."""
    count = lambda pattern: len({match[1] for key in source if (match := re.match(f"{re.escape(prefix)}{pattern}", key))})
    first, new = f"{names['first']}.0.conv1.weight", f"{names['transition'][0]}.1.0.0.weight"
    modules = tuple(count(rf"stage{n}\.(\d+)\.") for n in STAGES)
    blocks = {count(rf"stage{n}\.0\.branches\.{k}\.(\d+)\.") for n in STAGES for k in range(n)}
    if {f"{prefix}conv1.weight", f"{prefix}{first}", f"{prefix}{new}"} - set(source) or 0 in modules or len(blocks) != 1 or 0 in blocks:
        raise WeightsError(
            f"layout {name}: modules {modules} with {sorted(blocks)} blocks: expected an HRNetV2, found {sorted(source)[:10]}"
        )
    return {
        "width": int(source[f"{prefix}{new}"].shape[0]) // 2,
        "modules": modules,
        "blocks": blocks.pop(),
        "stem": int(source[f"{prefix}conv1.weight"].shape[0]),
        "bottlenecks": count(rf"{names['first']}\.(\d+)\."),
        "bottleneck_width": int(source[f"{prefix}{first}"].shape[0]),
    }


def _ocr_model(source: Mapping[str, np.ndarray], layout: Layout, normalization: str) -> dict[str, Any]:
    prefix, names = ("hrnet.", DIGA) if layout is DIGA_LAYOUT else ("", AUTHORS)
    key, last = (
        ("ocrnet.value.0.weight", "ocrnet.segmentation_classes.0.weight") if prefix else (f"{_BLOCK}.f_down.0.weight", "cls_head.weight")
    )
    sizes = _sizes(source, layout.name, prefix, names)
    if absent := [name for name in (key, last) if name not in source]:
        raise WeightsError(f"layout {layout.name}: lacks {', '.join(absent)}: this HRNet has no OCR head")
    classes, channels = source[last].shape[:2]
    head = {"num_classes": int(classes), "channels": int(channels), "key_channels": int(source[key].shape[0])}
    return {"make": "segjax.nets.ocr:HRNetOCR", **head, **sizes, "normalization": normalization}


HRNET_IMAGENET = Public(
    "hrnet_imagenet",
    recognises=lambda keys: {"transition1.1.0.0.weight", "incre_modules.0.0.conv1.weight"} <= set(keys),
    layout=lambda keys: IMAGENET_LAYOUT,
    model=lambda source, config: {"make": "segjax.nets.hrnet:HRNet", **_sizes(source, "hrnet_imagenet", "", AUTHORS)},
)
"""hrnetv2_w48_imagenet_pretrained.pth and its like; the classifier and the maps that lead to it are left out."""
HRNET_OCR = Public(
    "hrnet_ocr",
    recognises=lambda keys: {"transition1.1.0.0.weight", "conv3x3_ocr.0.weight"} <= set(keys),
    layout=lambda keys: OCR_LAYOUT,
    model=lambda source, config: _ocr_model(source, OCR_LAYOUT, "imagenet"),
)
"""HRNet/HRNet-Semantic-Segmentation, branch HRNet-OCR: hrnet_ocr_cs_8162_torch11.pth and its like."""
DIGA_HRNET = Public(
    "diga_hrnet",
    recognises=lambda keys: {"hrnet.transition_stage_1_2.1.0.0.weight", "ocrnet.value.0.weight"} <= set(keys),
    layout=lambda keys: DIGA_LAYOUT,
    model=lambda source, config: _ocr_model(source, DIGA_LAYOUT, "caffe_128_rgb"),
)
"""fy-vision/DiGA, semi-supervised: student.pth, teacher.pth."""
