"""Mask2Former at Hugging Face (Mask2FormerForUniversalSegmentation over a Swin), with its config.json, both ways.

Sizes come from the shapes; heads, activations and the like from the config, where an absent key means transformers' default. The network
does not fill images up to a multiple of 32 as transformers' image processor does (`--set size_divisor=32` for that).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import mask2former_names as names
from segjax.weights import swin_names
from segjax.weights.engine import Layout, Public

_NAME = "mask2former_hf"
_BACKBONE = "model.pixel_level_module.encoder."
_MAKE = "segjax.nets.mask2former:mask2former"


_STYLES = ("hf", "hf_memory")


def _forms() -> dict[tuple[str, bool], Layout]:
    """By names (as on disk, or as transformers 5 holds them in memory) and whether the buffers `relative_position_index` are there."""
    found = {}
    for style in _STYLES:
        layout = Layout(f"{_NAME}{style.removeprefix('hf')}", (*swin_names.rules(style, "backbone/", _BACKBONE), *names.rules("hf")))
        stored = dataclasses.replace(layout, name=f"{layout.name}_indices", ignore=swin_names.INDICES, derived=swin_names.indices)
        found |= {(style, False): layout, (style, True): stored}
    return found


FORMS = _forms()


def _style(keys: Iterable[str]) -> str:
    return "hf_memory" if _BACKBONE + swin_names.first_key("hf_memory") in keys else "hf"


def _layout(keys: Iterable[str]) -> Layout:
    return FORMS[_style(keys), swin_names.is_stored(keys)]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What only the config tells. WeightsError: a network that segjax does not know."""
    swin = config.get("backbone_config") or {}
    told = {"backbone_config.model_type": swin.get("model_type", "swin"), "model_type": config.get("model_type", "mask2former")}
    odd = [f"{key}={value!r}" for key, value in told.items() if value not in ("swin", "mask2former")]
    odd += [f"{key}={swin[key]!r}" for key in ("use_absolute_embeddings",) if swin.get(key)]
    if odd or len(swin.get("out_features") or range(4)) != 4:
        raise WeightsError(f"layout {_NAME}: config.json says {', '.join(odd) or 'out_features'}: expected Mask2Former over all of a Swin")
    return {
        "pre_norm": config.get("pre_norm", False),
        "activation": config.get("activation_function", "relu"),
        "backbone_activation": swin.get("hidden_act", "gelu"),
        "backbone_epsilon": swin.get("layer_norm_eps", 1e-5),
        "backbone_drop_path": float(swin.get("drop_path_rate", 0.1 if swin else 0.3)),
    }


_TOLD = {  # what both shapes and config tell: (ours, theirs)
    "queries": "num_queries",
    "channels": "feature_size",
    "mask_channels": "mask_feature_size",
    "decoder_channels": "hidden_dim",
    "encoder_hidden": "encoder_feedforward_dim",
    "decoder_hidden": "dim_feedforward",
    "encoder_layers": "encoder_layers",
}
_TOLD_SWIN = {"embed_dim": "embed_dim", "depths": "depths", "num_heads": "num_heads", "window": "window_size", "patch_size": "patch_size"}


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    swin = swin_names.fields(source, _style(source), _BACKBONE, _NAME)
    found = names.fields(source, "hf", _NAME, config.get("num_attention_heads", 8 if config else None))
    told = config.get("backbone_config") or {}
    plain = lambda value: tuple(value) if isinstance(value, list) else value
    wrong = [theirs for ours, theirs in _TOLD.items() if config.get(theirs, found[ours]) != found[ours]]
    wrong += [theirs for ours, theirs in _TOLD_SWIN.items() if plain(told.get(theirs, swin[ours])) != swin[ours]]
    classes, layers = found["num_classes"], found["decoder_layers"] + 1
    wrong += ["id2label"] * ((len(config.get("id2label", ())) or config.get("num_labels", classes)) != classes)
    wrong += ["decoder_layers"] * (config.get("decoder_layers", layers) != layers)
    if wrong:
        raise WeightsError(f"layout {_NAME}: config.json does not describe the weights beside it: {', '.join(wrong)} differ")
    backbone = {f"backbone_{name}": value for name, value in swin.items()}
    return {"make": _MAKE, "backbone": "swin", **found, **backbone, **_settings(config), "size_divisor": 1}


def _config(network: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' Mask2FormerForUniversalSegmentation reads. WeightsError: it has no such network."""
    if network["backbone"] != "swin" or network["points"] != 4:
        raise WeightsError(f"layout {_NAME}: transformers has it over a Swin, with 4 points: this is one over {network['backbone']!r}")
    stages = [f"stage{n}" for n in range(1, 5)]
    swin = {
        "model_type": "swin",
        **{theirs: _listed(network[f"backbone_{ours}"]) for ours, theirs in _TOLD_SWIN.items()},
        "mlp_ratio": network["backbone_mlp_ratio"],
        "qkv_bias": network["backbone_qkv_bias"],
        "hidden_act": network["backbone_activation"],
        "layer_norm_eps": network["backbone_epsilon"],
        "drop_path_rate": network["backbone_drop_path"],
        "out_features": stages,
        "out_indices": [1, 2, 3, 4],
    }
    labels = [f"LABEL_{n}" for n in range(network["num_classes"])]
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": swin,
        **{theirs: network[ours] for ours, theirs in _TOLD.items()},
        "num_attention_heads": network["heads"],
        "decoder_layers": network["decoder_layers"] + 1,
        "common_stride": 2 ** (3 - network["fpn_levels"]),
        "feature_strides": [4, 8, 16, 32],
        "pre_norm": network["pre_norm"],
        "activation_function": network["activation"],
        "enforce_input_projection": network["project"],
        "dropout": 0.0,
        "id2label": {str(n): label for n, label in enumerate(labels)},
        "label2id": {label: n for n, label in enumerate(labels)},
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


MASK2FORMER_HF = Public(
    _NAME,
    recognises=lambda keys: any(_BACKBONE + swin_names.first_key(style) in keys for style in _STYLES),
    layout=_layout,
    model=_model,
    config=_config,
    forms=tuple(FORMS.values()),
)
