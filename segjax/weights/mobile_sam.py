"""Names of MobileSAM's file, mobile_sam.pt: a TinyViT before SAM's prompt encoder and mask decoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import sam, sam_tables
from segjax.weights.engine import CONV, Layout, Public, Rule

_NORM = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)


def _conv_bn(ours: str, theirs: str) -> tuple[Rule, ...]:
    """A ConvBN; a depthwise kernel [C,1,k,k] becomes [k,k,1,C] by the same transposition."""
    norms = (Rule(f"{kind}/image_encoder/{ours}/bn/{a}", f"image_encoder.{theirs}.bn.{b}") for kind, a, b in _NORM)
    return Rule(f"params/image_encoder/{ours}/c/kernel", f"image_encoder.{theirs}.c.weight", CONV), *norms


def _trunk() -> tuple[Rule, ...]:
    blocks, block = r"layers_(\d)/blocks", "layers.{0}.blocks.{i}"
    at, there = f"image_encoder/{blocks}", f"image_encoder.{block}"
    return (
        *_conv_bn(r"patch_embed_(\d)", "patch_embed.seq.{0}"),
        *_conv_bn(rf"{blocks}/(conv\d|local_conv)", f"{block}.{{1}}"),
        *_conv_bn(r"layers_(\d)/downsample/(conv\d)", "layers.{0}.downsample.{1}"),
        *sam_tables.norm(f"{at}/(attn|mlp)/norm", f"{there}.{{1}}.norm"),
        *sam_tables.dense(f"{at}/(attn|mlp)/(qkv|proj|fc\\d)", f"{there}.{{1}}.{{2}}"),
        Rule(f"params/{at}/attn/attention_biases", f"{there}.attn.attention_biases"),
        *sam_tables.neck("image_encoder", sam.ORIGINAL_NECK),
    )


LAYOUT = Layout(
    "mobile_sam",
    (*_trunk(), *sam.original_prompts(), *sam.original_decoder()),
    (r".*\.num_batches_tracked", r"image_encoder\.(norm_head|head)\.(weight|bias)", r".*\.(attention_bias_idxs|ab)", r"pixel_(mean|std)"),
)
"""norm_head and head are the ImageNet classifier, which MobileSAM carries along unused; `ab` is a copy that old files may hold."""


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the shapes. The image size leaves no trace in a TinyViT: 1024, as published."""
    size = lambda key, axis: sam_tables.size_of(source, key, axis, "mobile_sam")
    depths = tuple(sam_tables.count(source, rf"image_encoder\.layers\.{n}\.blocks\.(\d+)\.") for n in range(4))
    if 0 in depths:
        raise WeightsError(f"layout mobile_sam: {depths} blocks in the four stages of the TinyViT: expected some in each")
    biases = [f"image_encoder.layers.{n}.blocks.0.attn.attention_biases" for n in (1, 2, 3)]
    first = size("image_encoder.patch_embed.seq.2.c.weight", 0)
    widths = (first, *(size(f"image_encoder.layers.{n}.downsample.conv1.c.weight", 0) for n in range(3)))
    return {
        "make": "segjax.nets.mobile_sam:MobileSam",
        "embed_dims": widths,
        "depths": depths,
        "heads": (max(first // 32, 1), *(size(key, 0) for key in biases)),
        "window_sizes": (7, *(round(size(key, 1) ** 0.5) for key in biases)),
        "mask_channels": size("prompt_encoder.mask_downscaling.3.weight", 0),
        **sam_tables.decoder_fields(source, "mobile_sam"),
    }


MOBILE_SAM = Public(
    "mobile_sam",
    recognises=lambda keys: {"image_encoder.patch_embed.seq.0.c.weight", "mask_decoder.iou_token.weight"} <= set(keys),
    layout=lambda keys: LAYOUT,
    model=_model,
)
