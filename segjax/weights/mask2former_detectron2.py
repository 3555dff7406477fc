"""Mask2Former in detectron2's files: the model zoo of facebookresearch/Mask2Former (ResNet or Swin) and CLOUDS (a CLIP).

They hold no config: sizes come from the shapes, and heads are as many as leave four points each. Of a CLOUDS checkpoint the text tower,
the void embedding (both unused by its linear classifier), the teacher and SAM are left out.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import clip_openai, clip_openai_rules, clip_sizes, swin_names
from segjax.weights import mask2former_names as names
from segjax.weights.engine import CONV, IDENTITY, Layout, Public, Rule
from segjax.weights.resnet import IGNORED, NORM

_MAKE = "segjax.nets.mask2former:mask2former"
_HEAD = "sem_seg_head.predictor.mask_embed.layers.0.weight"
_OLD_QUERY = "sem_seg_head.predictor.static_query.weight"
_STEM = "backbone.stem.conv1.weight"
_CLIP = "backbone.clip_model."


def _resnet() -> list[Rule]:
    """detectron2's ResNet: a norm belongs to its convolution, the projection is called shortcut."""
    rules = [Rule("params/backbone/conv1/kernel", _STEM, CONV)]
    rules += [Rule(f"{kind}/backbone/bn1/{ours}", f"backbone.stem.conv1.norm.{theirs}") for kind, ours, theirs in NORM]
    for n, (place, block, first) in itertools.product(range(1, 5), (("0", "0", 0), ("rest", "{i}", 1))):
        ours, theirs = f"backbone/layer{n}_{place}", f"backbone.res{n + 1}.{block}"
        rules.append(Rule(f"params/{ours}/(conv\\d)/kernel", f"{theirs}.{{0}}.weight", CONV, first))
        rules.append(Rule(f"params/{ours}/downsample_conv/kernel", f"{theirs}.shortcut.weight", CONV, first))
        for kind, mine, other in NORM:
            rules.append(Rule(f"{kind}/{ours}/bn(\\d)/{mine}", f"{theirs}.conv{{0}}.norm.{other}", IDENTITY, first))
            rules.append(Rule(f"{kind}/{ours}/downsample_bn/{mine}", f"{theirs}.shortcut.norm.{other}", IDENTITY, first))
    return rules


def _clip() -> list[Rule]:
    """open_clip's vision tower under `backbone.clip_model.`."""
    at = lambda path: path.replace("/", "/backbone/", 1)
    plain = [rule for rule in clip_openai_rules.VISION.rules if isinstance(rule.source, str)]
    return [dataclasses.replace(rule, path=at(rule.path), source=f"{_CLIP}{rule.source}") for rule in plain]


def _forms(name: str, backbone: Iterable[Rule], ignored: tuple[str, ...]) -> dict[tuple[bool, bool], Layout]:
    """By whether the queries have the name of the first release, and whether a Swin's buffers are there."""
    found = {}
    for old, stored in itertools.product((False, True), (False, True)):
        first = (Rule("params/decoder/query_feat", _OLD_QUERY),) if old else ()
        rules = (*first, *backbone, *names.rules("detectron2"))
        full = f"{name}{'_static_query' * old}{'_indices' * stored}"
        swin: dict[str, Any] = dict(derived=swin_names.indices) if stored else {}
        found[old, stored] = Layout(full, rules, (*ignored, *(swin_names.INDICES if stored else ())), **swin)
    return found


_ZOO = _forms("mask2former_detectron2", (*swin_names.rules("detectron2", "backbone/", "backbone."), *_resnet()), IGNORED)
_TEXT = (
    r"backbone\.clip_model\.(transformer\..*|token_embedding\..*|ln_final\..*|positional_embedding|text_projection|logit_scale|attn_mask)"
)
_UNUSED = (_TEXT, r"void_embedding\.weight", r"sem_seg_head_ema\..*", r"sam\..*")
_CLOUDS = _forms("clouds", _clip(), (*IGNORED, *_UNUSED))


def _form(forms: Mapping[tuple[bool, bool], Layout]) -> Any:
    return lambda keys: forms[_OLD_QUERY in keys, swin_names.is_stored(keys)]


def _zoo_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    del config
    layout = "mask2former_detectron2"
    if _STEM in source:
        depths = tuple(clip_sizes.depth(source, f"backbone.res{n}") for n in range(2, 6))
        if 0 in depths or "backbone.res2.0.conv3.weight" not in source:
            raise WeightsError(f"layout {layout}: blocks {depths}: expected a ResNet with bottlenecks, ResNet-50 or deeper")
        own: dict[str, Any] = {"depth": depths, "width": clip_sizes.shape(source, _STEM, 4, layout)[0]}
    else:
        own = swin_names.fields(source, "detectron2", "backbone.", layout)
    return {
        "make": _MAKE,
        "backbone": "resnet" if _STEM in source else "swin",
        **names.fields(source, "detectron2", layout),
        **{f"backbone_{name}": value for name, value in own.items()},
    }


def _clouds_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key.removeprefix(_CLIP): value for key, value in source.items() if key.startswith(_CLIP)}
    tower = clip_openai.CLIP_OPENAI_VISION.model(inner, config)
    kinds = {"segjax.nets.clip:ModifiedResNet": "clip_resnet", "segjax.nets.clip:ConvNeXtTower": "clip_convnext"}
    if tower["make"] not in kinds:
        raise WeightsError(f"layout clouds: the backbone is {tower['make']}: expected CLIP's ResNet or ConvNeXt, which have four maps")
    return {
        "make": _MAKE,
        "backbone": kinds[tower["make"]],
        **names.fields(source, "detectron2", "clouds"),
        **{f"backbone_{name}": value for name, value in tower.items() if name != "make"},
        "normalization": "clip",
        "frozen": True,
    }


def _is_clip(keys: Iterable[str]) -> bool:
    return any(key.startswith(f"{_CLIP}visual.") for key in keys)


MASK2FORMER_DETECTRON2 = Public(
    "mask2former_detectron2",
    recognises=lambda keys: _HEAD in keys and not _is_clip(keys),
    layout=_form(_ZOO),
    model=_zoo_model,
    forms=tuple(_ZOO.values()),
)
CLOUDS = Public(
    "clouds",
    recognises=lambda keys: _HEAD in keys and _is_clip(keys),
    layout=_form(_CLOUDS),
    model=_clouds_model,
    forms=tuple(_CLOUDS.values()),
)
