"""Names of DAFormer and HRDA, and of both over DeepLabV2, as their own training checkpoints and those of MIC and DATUM hold them.

A training checkpoint holds several networks (`model.` the student, `ema_model.` the teacher, `imnet_model.` the ImageNet copy): the reader
has chosen one by then (`wrappers.unwrap`). A head called UniHead in old configs has the same names. An HRDA also gives the DAFormer that it
runs at both scales, without the attention, when asked for (`hrda_daformer`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import mit
from segjax.weights import mit_names as names
from segjax.weights.engine import CONV, Layout, Public, Rule
from segjax.weights.resnet import V1C, named_depth

DILATIONS = (6, 12, 18, 24)


def _conv_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (Rule(f"params/{ours}/conv/kernel", f"{theirs}.conv.weight", CONV), *names.module("batch_norm", f"{ours}/bn", f"{theirs}.bn"))


def _head(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Every fusion at once: one 1x1 (or larger) convolution, ASPP with dense or with depthwise-separable branches."""
    fuse, theirs_fuse = f"{ours}/fuse_layer", f"{theirs}.fuse_layer"
    ours_branch, branch = f"{fuse}/aspp_modules_(\\d+)", f"{theirs_fuse}.aspp_modules.{{0}}"
    return (
        *names.module("dense", rf"{ours}/embed_layers_(\d)", f"{theirs}.embed_layers.{{0}}.proj"),
        *_conv_norm(fuse, theirs_fuse),
        *_conv_norm(f"{fuse}/bottleneck", f"{theirs_fuse}.bottleneck"),
        *_conv_norm(ours_branch, branch),
        Rule(f"params/{ours_branch}/depthwise_conv/kernel", f"{branch}.depthwise_conv.conv.weight", CONV),
        *names.module("batch_norm", f"{ours_branch}/depthwise_bn", f"{branch}.depthwise_conv.bn"),
        *_conv_norm(f"{ours_branch}/pointwise", f"{branch}.pointwise_conv"),
        *names.module("conv", f"{ours}/conv_seg", f"{theirs}.conv_seg"),
    )


def _dlv2_head(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The atrous convolutions, stacked here."""
    branch = f"{theirs}.aspp_modules.{{i}}.conv"
    return (Rule(f"params/{ours}/kernel", f"{branch}.weight", CONV), Rule(f"params/{ours}/bias", f"{branch}.bias"))


HEAD, ATTENTION = ("decode_head/head", "decode_head.head"), ("decode_head/scale_attention", "decode_head.scale_attention")
_BATCHES = r".*\.num_batches_tracked"
_MIT = names.rules("nvlabs", "backbone/", "backbone.")
_V1C = tuple(dataclasses.replace(rule, source=f"backbone.{rule.source}") for rule in V1C.rules)
LAYOUT = Layout("daformer", (*_MIT, *_head("decode_head", "decode_head")), (_BATCHES,))
BOTH = Layout("hrda", (*_MIT, *_head(*HEAD), *_head(*ATTENTION)), (_BATCHES,))
DETAIL = Layout("hrda_daformer", (*_MIT, *_head("decode_head", HEAD[1])), (_BATCHES, r"decode_head\.scale_attention\..*"))
DLV2_LAYOUT = Layout("dlv2", (*_V1C, *_dlv2_head("decode_head", "decode_head")), (_BATCHES,))
HRDA_DLV2_LAYOUT = Layout("hrda_dlv2", (*_V1C, *_dlv2_head(*HEAD), *_dlv2_head(*ATTENTION)), (_BATCHES,))


def _fusion(source: Mapping[str, np.ndarray], head: str, layout: str) -> dict[str, Any]:
    """Arguments of a DAFormer head."""
    embeddings = [f"{head}.embed_layers.{n}.proj.weight" for n in range(len(names.STAGES))]
    if absent := [key for key in (*embeddings, f"{head}.conv_seg.bias") if key not in source]:
        raise WeightsError(f"layout {layout}: lacks {', '.join(absent)}: segjax has DAFormer's head with linear embeddings alone")
    found: dict[str, Any] = {"num_classes": int(source[f"{head}.conv_seg.bias"].shape[0]), "channels": int(source[embeddings[0]].shape[0])}
    fuse = f"{head}.fuse_layer."
    if f"{fuse}conv.weight" in source:
        return found | {"fusion": "conv", "kernel_size": int(source[f"{fuse}conv.weight"].shape[-1])}
    if f"{fuse}bottleneck.conv.weight" in source:
        return found | {"fusion": "sepaspp" if f"{fuse}aspp_modules.1.depthwise_conv.conv.weight" in source else "aspp"}
    there = sorted(key for key in source if key.startswith(fuse))[:5]
    raise WeightsError(f"layout {layout}: fusion {there or 'without weights'}: segjax has conv, aspp and sepaspp")


def _model(source: Mapping[str, np.ndarray], layout: Layout, head: str) -> dict[str, Any]:
    found = {"make": "segjax.nets.daformer:DAFormer", **_fusion(source, head, layout.name)}
    return found | mit.settings(source, "nvlabs", "backbone.", {}, layout.name)


def _attention(outputs: int | None, classes: int, layout: str) -> dict[str, str]:
    known = {None: "fixed", 1: "single", classes: "classwise"}
    if outputs not in known:
        raise WeightsError(
            f"layout {layout}: a scale attention with {outputs} outputs: expected 1, or one for each of the {classes} classes"
        )
    return {"attention": known[outputs]}


def _hrda(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _model(source, BOTH, HEAD[1]) | {"make": "segjax.nets.hrda:HRDA"}
    if not any(key.startswith(f"{ATTENTION[1]}.") for key in source):
        return found | _attention(None, found["num_classes"], "hrda")
    light = _fusion(source, ATTENTION[1], "hrda")
    kernel_size = found.get("kernel_size", 1) if found["fusion"] == "conv" else 1
    if (light["fusion"], light.get("kernel_size")) != ("conv", kernel_size):
        raise WeightsError(
            f"layout hrda: a scale attention with fusion {light['fusion']}: segjax has one convolution of {kernel_size}x{kernel_size}"
        )
    return found | {"attention_channels": light["channels"]} | _attention(light["num_classes"], found["num_classes"], "hrda")


def _dlv2(source: Mapping[str, np.ndarray], make: str, head: str, layout: str) -> dict[str, Any]:
    """dilations: 6, 12 or all four, by their number, which no array tells."""
    encoder = {key.removeprefix("backbone."): value for key, value in source.items() if key.startswith("backbone.")}
    last, count = f"{head}.aspp_modules.0.conv.bias", sum(f"{head}.aspp_modules.{n}.conv.bias" in source for n in range(5))
    if count not in (2, 4):
        raise WeightsError(
            f"layout {layout}: {count} atrous convolutions in {head}: expected two (dilations 6, 12) or four (6, 12, 18, 24)"
        )
    return {
        "make": make,
        "backbone": named_depth({**encoder, last: source[last]}, layout, last, "stem.6.weight"),
        "num_classes": int(source[last].shape[0]),
        "width": int(source["backbone.stem.6.weight"].shape[0]),
        "dilations": DILATIONS[:count],
    }


def _hrda_dlv2(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    found = _dlv2(source, "segjax.nets.hrda:HRDADLV2", HEAD[1], "hrda_dlv2")
    light = source.get(f"{ATTENTION[1]}.aspp_modules.0.conv.bias")
    return found | _attention(None if light is None else int(light.shape[0]), found["num_classes"], "hrda_dlv2")


def _holds(*keys: str) -> Callable[[Iterable[str]], bool]:
    return lambda there: set(keys) <= set(there)


_FIRST, _ATROUS = "backbone.patch_embed1.proj.weight", "aspp_modules.0.conv.weight"
DAFORMER = Public(
    "daformer",
    recognises=_holds(_FIRST, "decode_head.embed_layers.0.proj.weight"),
    layout=lambda keys: LAYOUT,
    model=lambda source, config: _model(source, LAYOUT, "decode_head"),
)
HRDA = Public("hrda", recognises=_holds(_FIRST, f"{HEAD[1]}.embed_layers.0.proj.weight"), layout=lambda keys: BOTH, model=_hrda)
HRDA_DAFORMER = Public(
    "hrda_daformer",
    recognises=lambda keys: False,  # only when asked for: it leaves a part of the network out
    layout=lambda keys: DETAIL,
    model=lambda source, config: _model(source, DETAIL, HEAD[1]),
    reversible=False,
)
DLV2 = Public(
    "dlv2",
    recognises=_holds("backbone.stem.0.weight", f"decode_head.{_ATROUS}"),
    layout=lambda keys: DLV2_LAYOUT,
    model=lambda source, config: _dlv2(source, "segjax.nets.dlv2:DLV2", "decode_head", "dlv2"),
)
HRDA_DLV2 = Public(
    "hrda_dlv2",
    recognises=_holds("backbone.stem.0.weight", f"{HEAD[1]}.{_ATROUS}"),
    layout=lambda keys: HRDA_DLV2_LAYOUT,
    model=_hrda_dlv2,
)
