"""Mask2Former's pixel decoder and transformer decoder under Hugging Face's names and detectron2's: a table, and what shapes tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import clip_sizes
from segjax.weights.engine import Rule
from segjax.weights.mit_names import module

STYLES = ("hf", "detectron2")
_PIXELS = ("model.pixel_level_module.decoder.", "sem_seg_head.pixel_decoder.")
_QUERIES = ("model.transformer_module.", "sem_seg_head.predictor.")
_LAYER = (_PIXELS[0] + "encoder.layers.{i}.", _PIXELS[1] + "transformer.encoder.layers.{i}.")
PIXEL_DECODER = {  # our module: (arrays, then a name for each style)
    r"input_proj_(\d)": ("conv", _PIXELS[0] + "input_projections.{0}.0", _PIXELS[1] + "input_proj.{0}.0"),
    r"input_proj_(\d)_norm": ("norm", _PIXELS[0] + "input_projections.{0}.1", _PIXELS[1] + "input_proj.{0}.1"),
    r"(adapter|layer)_(\d)": ("conv", _PIXELS[0] + "{0}_{1}.0", _PIXELS[1] + "{0}_{1}"),
    r"(adapter|layer)_(\d)_norm": ("norm", _PIXELS[0] + "{0}_{1}.1", _PIXELS[1] + "{0}_{1}.norm"),
    "mask_features": ("conv", _PIXELS[0] + "mask_projection", _PIXELS[1] + "mask_features"),
    r"layers/self_attn/(\w+)": ("dense", _LAYER[0] + "self_attn.{0}", _LAYER[1] + "self_attn.{0}"),
    "layers/norm1": ("norm", _LAYER[0] + "self_attn_layer_norm", _LAYER[1] + "norm1"),
    "layers/norm2": ("norm", _LAYER[0] + "final_layer_norm", _LAYER[1] + "norm2"),
    r"layers/linear(\d)": ("dense", _LAYER[0] + "fc{0}", _LAYER[1] + "linear{0}"),
}
DECODER = {
    r"input_proj_(\d)": ("conv", "input_projections.{0}", "input_proj.{0}"),
    "mask_embed/decoder_norm": ("norm", "decoder.layernorm", "decoder_norm"),
    r"mask_embed/layer(\d)": ("dense", "decoder.mask_predictor.mask_embedder.{0}.0", "mask_embed.layers.{0}"),
}
TABLES = {"query_feat": "queries_features", "query_embed": "queries_embedder", "level_embed": "level_embed"}
"""Our table of vectors -> Hugging Face's name; detectron2's is ours."""
BLOCK = {  # a module of a layer whose number is N there
    "cross_norm": ("norm", "decoder.layers.N.cross_attn_layer_norm", "transformer_cross_attention_layers.N.norm"),
    "self_norm": ("norm", "decoder.layers.N.self_attn_layer_norm", "transformer_self_attention_layers.N.norm"),
    "mlp_norm": ("norm", "decoder.layers.N.final_layer_norm", "transformer_ffn_layers.N.norm"),
    r"fc(\d)": ("dense", "decoder.layers.N.fc{1}", "transformer_ffn_layers.N.linear{1}"),
    "cross_attn/out_proj": (
        "dense",
        "decoder.layers.N.cross_attn.out_proj",
        "transformer_cross_attention_layers.N.multihead_attn.out_proj",
    ),
    "self_attn/out_proj": ("dense", "decoder.layers.N.self_attn.out_proj", "transformer_self_attention_layers.N.self_attn.out_proj"),
}
LOSS_WEIGHT = "criterion.empty_weight"
"""A buffer of the loss that public files hold beside the network."""
_CLASSES, _LAST = (0, -1, None), (-1, None, None)  # rows of the classifier
_IN = {  # query above key and value
    "cross": ("decoder.layers.N.cross_attn.in_proj_", "transformer_cross_attention_layers.N.multihead_attn.in_proj_"),
    "self": ("", "transformer_self_attention_layers.N.self_attn.in_proj_"),
}


def rules(style: str) -> tuple[Rule, ...]:
    """Every rule but the backbone's, in one of `STYLES`."""
    s = STYLES.index(style)
    offsets = _LAYER[s] + "self_attn.sampling_offsets.bias"
    result = [Rule("params/pixel_decoder/layers/self_attn/sampling_offsets_bias", offsets)]
    result.append(Rule("params/pixel_decoder/level_embed", (_PIXELS[0], _PIXELS[1] + "transformer.")[s] + "level_embed"))
    for place, (kind, *names) in PIXEL_DECODER.items():
        result += module(kind, f"pixel_decoder/{place}", names[s])
    for place, (kind, *names) in DECODER.items():
        result += module(kind, f"decoder/{place}", _QUERIES[s] + names[s])
    result += [Rule(f"params/decoder/{ours}", f"{_QUERIES[s]}{(theirs, ours)[s]}.weight") for ours, theirs in TABLES.items()]
    classifier = ("class_predictor", f"{_QUERIES[1]}class_embed")[s]
    result += [*module("dense", "decoder/class_embed", (classifier, _CLASSES)), *module("dense", "decoder/no_object", (classifier, _LAST))]
    result.append(Rule("batch_stats/class_weight", LOSS_WEIGHT, share=_CLASSES))
    result.append(Rule("batch_stats/no_object_weight", LOSS_WEIGHT, share=_LAST))
    for at, number in ((r"decoder/rounds/layer(\d)", "{i}"), (r"decoder/layer(\d+)", "{0}")):
        result += [dataclasses.replace(rule, number=_of_round) for rule in _layer(s, at, number)]
    return tuple(result)


def _layer(s: int, at: str, number: str) -> list[Rule]:
    """The rules of a decoder layer under the path `at`, whose number there is `number`."""
    named = lambda name: _QUERIES[s] + name.replace("N", number)
    result = [rule for place, (kind, *names) in BLOCK.items() for rule in module(kind, f"{at}/{place}", named(names[s]))]
    for kind, names in _IN.items():
        for n, part in enumerate("qkv"):
            theirs = (named(names[s]), (n, n + 1, 3)) if names[s] else named(f"decoder.layers.N.{kind}_attn.{part}_proj")
            result += module("dense", f"{at}/{kind}_attn/{part}_proj", theirs)
    return result


def _of_round(i: int, groups: tuple[str, ...]) -> int:
    return 3 * i + int(groups[0])


def fields(source: Mapping[str, np.ndarray], style: str, layout: str, heads: int | None = None) -> dict[str, Any]:
    """Settings of `segjax.nets.mask2former:mask2former` without the backbone's, from shapes.

    heads: None for as many as leave four points a head and level, the number in every public model. WeightsError: no such network, or
    another number of heads.
    """
    s = STYLES.index(style)
    size = lambda key, rank: clip_sizes.shape(source, key, rank, layout)
    at = _LAYER[s].format(i=0)
    layers = _QUERIES[s] + ("decoder.layers", "transformer_ffn_layers")[s]
    places, channels = size(f"{at}self_attn.attention_weights.weight", 2)
    mask_channels = size(_PIXELS[s] + ("mask_projection", "mask_features")[s] + ".weight", 4)[0]
    queries, decoder_channels = size(_QUERIES[s] + ("queries_embedder", "query_embed")[s] + ".weight", 2)
    heads = heads or places // 12
    if places % (3 * heads) or channels % heads:
        raise WeightsError(f"layout {layout}: {heads} heads do not divide {places} places of three maps and {channels} channels: set heads")
    return {
        "num_classes": size(("class_predictor", f"{_QUERIES[1]}class_embed")[s] + ".weight", 2)[0] - 1,
        "channels": channels,
        "mask_channels": mask_channels,
        "decoder_channels": decoder_channels,
        "heads": heads,
        "points": places // (3 * heads),
        "encoder_layers": clip_sizes.depth(source, at.removesuffix(".0.")),
        "encoder_hidden": size(at + ("fc1", "linear1")[s] + ".weight", 2)[0],
        "fpn_levels": sum(f"{_PIXELS[s]}adapter_{n}{('.0', '')[s]}.weight" in source for n in (1, 2)),
        "queries": queries,
        "decoder_layers": clip_sizes.depth(source, layers),
        "decoder_hidden": size(f"{layers}.0.{('fc1', 'linear1')[s]}.weight", 2)[0],
        "loss_weights": LOSS_WEIGHT in source,
        "project": channels == decoder_channels and _QUERIES[s] + ("input_projections", "input_proj")[s] + ".0.weight" in source,
    }
