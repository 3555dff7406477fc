"""What the public spellings of SAM have in common: the tables of the prompt encoder, the mask decoder and the ViT, by the names of each."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, CONV_TRANSPOSE, DENSE, IDENTITY, Rule, Transform, reshaped

ROW = reshaped(lambda shape: shape[1:], lambda shape: (1, *shape))
"""torch's Embedding of one row [1,C] <-> [C], one of a stack."""
DECODER_HEADS = 8
"""Of the mask decoder in every published file; a bare state dict does not tell it."""


def dense(ours: str, theirs: str, **stack: Any) -> tuple[Rule, ...]:
    """kernel and bias of a Dense layer; `ours` is a regular expression under params/."""
    return (
        Rule(f"params/{ours}/kernel", f"{theirs}.weight", DENSE, **stack),
        Rule(f"params/{ours}/bias", f"{theirs}.bias", IDENTITY, **stack),
    )


def norm(ours: str, theirs: str, **stack: Any) -> tuple[Rule, ...]:
    """scale and bias of a LayerNorm or GroupNorm."""
    return (
        Rule(f"params/{ours}/scale", f"{theirs}.weight", IDENTITY, **stack),
        Rule(f"params/{ours}/bias", f"{theirs}.bias", IDENTITY, **stack),
    )


def conv(ours: str, theirs: str, transform: Transform = CONV) -> tuple[Rule, ...]:
    """kernel and bias of a convolution."""
    return Rule(f"params/{ours}/kernel", f"{theirs}.weight", transform), Rule(f"params/{ours}/bias", f"{theirs}.bias")


def mask_embedding(names: tuple[str, str, str, str, str]) -> tuple[Rule, ...]:
    """The encoder of mask prompts; names: of its convolutions and norms in their order, with their prefix."""
    ours = "prompt_encoder/mask_embed/"
    rules = [rule for n, theirs in zip((1, 2, 3), names[::2], strict=True) for rule in conv(f"{ours}conv{n}", theirs)]
    return (*rules, *(rule for n, theirs in zip((1, 2), names[1::2], strict=True) for rule in norm(f"{ours}layer_norm{n}", theirs)))


def decoder(norms: str, last: str, upscale: tuple[str, str, str], heads: tuple[str, str, str], mlp: tuple[str, str]) -> tuple[Rule, ...]:
    """The mask decoder. norms: template of a block's N-th norm; last: the final norm; upscale: two transposed convolutions and the norm
    between; heads: the three layers of a head; mlp: the two layers of a block's MLP."""
    ours, block = "mask_decoder/transformer", "mask_decoder.transformer.layers.{0}"
    attention = "(self_attn|cross_attn_token_to_image|cross_attn_image_to_token)"
    projection = "mask_decoder.transformer.final_attn_token_to_image.{0}_proj"
    rules = [
        Rule(r"params/mask_decoder/(iou_token|mask_tokens)", "mask_decoder.{0}.weight"),
        *dense(rf"{ours}/layers_(\d+)/{attention}/([qkv]|out)_proj", f"{block}.{{1}}.{{2}}_proj"),
        *norm(rf"{ours}/layers_(\d+)/norm(\d)", f"{block}.{norms}"),
        *dense(rf"{ours}/layers_(\d+)/mlp/lin1", f"{block}.mlp.{mlp[0]}"),
        *dense(rf"{ours}/layers_(\d+)/mlp/lin2", f"{block}.mlp.{mlp[1]}"),
        *dense(rf"{ours}/final_attn_token_to_image/([qkv]|out)_proj", projection),
        *norm(f"{ours}/norm_final_attn", f"mask_decoder.transformer.{last}"),
        *conv("mask_decoder/upscale_conv1", f"mask_decoder.{upscale[0]}", CONV_TRANSPOSE),
        *norm("mask_decoder/upscale_layer_norm", f"mask_decoder.{upscale[1]}"),
        *conv("mask_decoder/upscale_conv2", f"mask_decoder.{upscale[2]}", CONV_TRANSPOSE),
    ]
    for n, layer in enumerate(heads):
        rules += dense(f"mask_decoder/output_hypernetworks_mlps/layers_{n}", f"mask_decoder.output_hypernetworks_mlps.{{i}}.{layer}")
        rules += dense(f"mask_decoder/iou_prediction_head/layers_{n}", f"mask_decoder.iou_prediction_head.{layer}")
    return tuple(rules)


def vit(encoder: str, block: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The ViT under the prefix `encoder`, its blocks under `block`.N; names: theirs of patch_embed, norm, conv1..2, layer_norm1..2.

    A parameter's path tells which blocks its stack holds: blocks_START_RUN (`segjax.nets.sam_encoder`).
    """
    ours = "image_encoder/blocks_(\\d+)_(\\d+)/"
    windowed = lambda i, groups: int(groups[0]) + i // int(groups[1]) * (int(groups[1]) + 1) + i % int(groups[1])
    closing = lambda i, groups: int(groups[0]) + i * (int(groups[1]) + 1) + int(groups[1])
    at = f"{encoder}.{block}.{{i}}"
    rules = []
    stacks: dict[str, dict[str, Any]] = {"windowed": {"number": windowed, "levels": 2}, "global": {"number": closing}}
    for kind, stack in stacks.items():
        rules += norm(f"{ours}{kind}/norm(\\d)", f"{at}.{names['norm']}{{2}}", **stack)
        rules += dense(f"{ours}{kind}/(attn|mlp)/(qkv|proj|lin1|lin2)", f"{at}.{{2}}.{{3}}", **stack)
        rules.append(Rule(f"params/{ours}{kind}/attn/(rel_pos_[hw])", f"{at}.attn.{{2}}", **stack))
    return (
        Rule("params/image_encoder/pos_embed", f"{encoder}.pos_embed"),
        *conv("image_encoder/patch_embed", f"{encoder}.{names['patch_embed']}"),
        *rules,
        *neck(encoder, names),
    )


def neck(encoder: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The neck, whose convolutions have no bias."""
    convs = tuple(Rule(f"params/image_encoder/neck/conv{n}/kernel", f"{encoder}.neck.{names[f'conv{n}']}.weight", CONV) for n in (1, 2))
    norms = [norm(f"image_encoder/neck/layer_norm{n}", f"{encoder}.neck.{names[f'layer_norm{n}']}") for n in (1, 2)]
    return (*convs, *norms[0], *norms[1])


def count(source: Iterable[str], pattern: str) -> int:
    """How many different first groups of a regular expression the keys have."""
    return len({found[1] for key in source if (found := re.match(pattern, key))})


def size_of(source: Mapping[str, np.ndarray], key: str, axis: int, layout: str) -> int:
    """Length of an axis of a tensor. WeightsError: it is not there."""
    if key not in source or source[key].ndim <= axis:
        raise WeightsError(f"layout {layout}: no tensor {key!r} with {axis + 1} or more axes: this is not that network")
    return int(source[key].shape[axis])


def decoder_fields(source: Mapping[str, np.ndarray], layout: str, *, head: str = "layers.0", lin1: str = "lin1") -> dict[str, Any]:
    """Sizes of the mask decoder from the shapes: `head` and `lin1` are the names of a head's and of an MLP's first layer."""
    features = size_of(source, "mask_decoder.iou_token.weight", 1, layout)
    return {
        "features": features,
        "decoder_depth": count(source, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "decoder_heads": DECODER_HEADS if features == 256 else 0,
        "decoder_mlp_dim": size_of(source, f"mask_decoder.transformer.layers.0.mlp.{lin1}.weight", 0, layout),
        "iou_hidden": size_of(source, f"mask_decoder.iou_prediction_head.{head}.weight", 0, layout),
        "num_masks": size_of(source, "mask_decoder.mask_tokens.weight", 0, layout) - 1,
    }


def vit_fields(source: Mapping[str, np.ndarray], encoder: str, block: str, patch_embed: str, layout: str) -> dict[str, Any]:
    """Sizes of the ViT from the shapes: the tables of relative positions tell the heads, the windows and which blocks are global."""
    grid, width = (size_of(source, f"{encoder}.pos_embed", axis, layout) for axis in (1, 3))
    patch = size_of(source, f"{encoder}.{patch_embed}.weight", 3, layout)
    depth = count(source, rf"{re.escape(encoder)}\.{block}\.(\d+)\.")
    lengths = [size_of(source, f"{encoder}.{block}.{n}.attn.rel_pos_h", 0, layout) for n in range(depth)]
    head = size_of(source, f"{encoder}.{block}.0.attn.rel_pos_h", 1, layout)
    windows = {(length + 1) // 2 for length in lengths if length != 2 * grid - 1}
    if len(windows) > 1 or width % head:
        raise WeightsError(f"layout {layout}: relative positions {lengths} x {head} at width {width}: expected windows of one size")
    return {
        "image_size": grid * patch,
        "patch": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // head,
        "mlp_dim": size_of(source, f"{encoder}.{block}.0.mlp.lin1.weight", 0, layout),
        "global_blocks": tuple(n for n, length in enumerate(lengths) if length == 2 * grid - 1),
        "window": windows.pop() if windows else grid,
    }
