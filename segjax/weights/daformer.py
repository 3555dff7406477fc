"""Names of DAFormer, as its own training checkpoints and those of MIC hold it; HRDA's are told, and give their DAFormer when asked.

A training checkpoint holds several networks (`model.` the student, `ema_model.` the teacher, `imnet_model.` the ImageNet copy): the reader
has chosen one by then (`wrappers.unwrap`). A head called UniHead in old configs has the same names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import mit
from segjax.weights import mit_names as names
from segjax.weights.engine import CONV, Layout, Public, Rule


def _conv_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (Rule(f"params/{ours}/conv/kernel", f"{theirs}.conv.weight", CONV), *names.module("batch_norm", f"{ours}/bn", f"{theirs}.bn"))


def _head(theirs: str) -> tuple[Rule, ...]:
    """Every fusion at once: one 1x1 (or larger) convolution, ASPP with dense or with depthwise-separable branches."""
    fuse, theirs_fuse = "decode_head/fuse_layer", f"{theirs}fuse_layer"
    ours_branch, branch = f"{fuse}/aspp_modules_(\\d+)", f"{theirs_fuse}.aspp_modules.{{0}}"
    return (
        *names.module("dense", r"decode_head/embed_layers_(\d)", f"{theirs}embed_layers.{{0}}.proj"),
        *_conv_norm(fuse, theirs_fuse),
        *_conv_norm(f"{fuse}/bottleneck", f"{theirs_fuse}.bottleneck"),
        *_conv_norm(ours_branch, branch),
        Rule(f"params/{ours_branch}/depthwise_conv/kernel", f"{branch}.depthwise_conv.conv.weight", CONV),
        *names.module("batch_norm", f"{ours_branch}/depthwise_bn", f"{branch}.depthwise_conv.bn"),
        *_conv_norm(f"{ours_branch}/pointwise", f"{branch}.pointwise_conv"),
        *names.module("conv", "decode_head/conv_seg", f"{theirs}conv_seg"),
    )


_BATCHES = r".*\.num_batches_tracked"
LAYOUT = Layout("daformer", (*names.rules("nvlabs", "backbone/", "backbone."), *_head("decode_head.")), (_BATCHES,))
DETAIL = Layout(
    "hrda_daformer",
    (*names.rules("nvlabs", "backbone/", "backbone."), *_head("decode_head.head.")),
    (_BATCHES, r"decode_head\.scale_attention\..*"),
)


def _model(source: Mapping[str, np.ndarray], layout: Layout, head: str) -> dict[str, Any]:
    embeddings = [f"{head}embed_layers.{n}.proj.weight" for n in range(len(names.STAGES))]
    if absent := [key for key in (*embeddings, f"{head}conv_seg.bias") if key not in source]:
        raise WeightsError(f"layout {layout.name}: lacks {', '.join(absent)}: segjax has DAFormer's head with linear embeddings alone")
    network = {"make": "segjax.nets.daformer:DAFormer", "num_classes": int(source[f"{head}conv_seg.bias"].shape[0])}
    network["channels"] = int(source[embeddings[0]].shape[0])
    if f"{head}fuse_layer.conv.weight" in source:
        network |= {"fusion": "conv", "kernel_size": int(source[f"{head}fuse_layer.conv.weight"].shape[-1])}
    elif f"{head}fuse_layer.bottleneck.conv.weight" in source:
        separable = f"{head}fuse_layer.aspp_modules.1.depthwise_conv.conv.weight" in source
        network["fusion"] = "sepaspp" if separable else "aspp"
    else:
        fuse = sorted(key for key in source if key.startswith(f"{head}fuse_layer."))[:5]
        raise WeightsError(f"layout {layout.name}: fusion {fuse or 'without weights'}: segjax has conv, aspp and sepaspp")
    return network | mit.settings(source, "nvlabs", "backbone.", {}, layout.name)


def _no_hrda(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    raise WeightsError(
        "an HRDA checkpoint (decode_head.head and decode_head.scale_attention), a network that segjax does not have: "
        "--layout=hrda_daformer converts the DAFormer that it runs at both scales, without the attention over them"
    )


def _is_hrda(keys: Any) -> bool:
    return any(key.startswith("decode_head.scale_attention.") for key in keys) and any(k.startswith("decode_head.head.") for k in keys)


DAFORMER = Public(
    "daformer",
    recognises=lambda keys: {"backbone.patch_embed1.proj.weight", "decode_head.embed_layers.0.proj.weight"} <= set(keys),
    layout=lambda keys: LAYOUT,
    model=lambda source, config: _model(source, LAYOUT, "decode_head."),
)
HRDA = Public("hrda", recognises=_is_hrda, layout=lambda keys: DETAIL, model=_no_hrda, reversible=False)
HRDA_DAFORMER = Public(
    "hrda_daformer",
    recognises=lambda keys: False,  # only when asked for: it leaves a part of the network out
    layout=lambda keys: DETAIL,
    model=lambda source, config: _model(source, DETAIL, "decode_head.head."),
    reversible=False,
)
