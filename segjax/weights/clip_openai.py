"""CLIP in OpenAI's files and open_clip's, with open_clip_config.json or without any config: the network that a file describes.

Sizes come from the shapes. What shapes cannot tell comes from the config, and without one from OpenAI's rules: a head for every 64
channels; quick GELU where OpenAI's three scalars (`input_resolution`, ...) are in the file, exact GELU elsewhere (set
`vision_activation` and `text_activation` for the few other files that were trained with the quick one).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import clip_openai_config, clip_sizes
from segjax.weights.clip_openai_rules import CUSTOM_TEXT, PLAIN, SCALARS, VISION, WITH_SIZES, Layout
from segjax.weights.engine import Public

_OFF = (
    "attentional_pool",
    "embed_cls",
    "final_ln_after_pool",
    "global_average_pool",
    "hf_model_name",
    "ls_init_value",
    "no_causal_mask",
    "no_ln_pre",
    "norm_kwargs",
    "act_kwargs",
)
"""Switches of open_clip's configs that change the network in ways that segjax does not know."""
_CHOICES = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "timm_pool": ("", "avg")}
_TIMM_EPSILON: dict[tuple[int, ...], float] = {
    (384, 768, 1536, 3072): 1e-5
}  # timm builds convnext_xxlarge with another epsilon than its other ConvNeXts


def _form(keys: Iterable[str]) -> Layout:
    if "text.token_embedding.weight" in keys:
        return CUSTOM_TEXT
    return WITH_SIZES if all(name in keys for name in SCALARS) else PLAIN


def _settings(config: Mapping[str, Any], layout: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(model, vision, text) settings of an open_clip_config.json or a bare open_clip model config. WeightsError: a switch unknown here."""
    model = dict(config.get("model_cfg", config))
    vision, text = dict(model.get("vision_cfg") or {}), dict(model.get("text_cfg") or {})
    for part in (vision, text):
        odd = [name for name in _OFF if part.get(name)]
        odd += [name for name, known in _CHOICES.items() if part.get(name) is not None and part[name] not in known]
        if odd:
            raise WeightsError(f"layout {layout}: the config sets {', '.join(f'{name}={part[name]!r}' for name in odd)}: not a known CLIP")
    return model, vision, text


def _activation(source: Mapping[str, np.ndarray], model: Mapping[str, Any]) -> str:
    quick = model.get("quick_gelu", False) if "vision_cfg" in model else all(name in source for name in SCALARS)
    return "quick_gelu" if quick else "gelu"


def _vit(source: Mapping[str, np.ndarray], settings: Mapping[str, Any], activation: str, layout: str) -> dict[str, Any]:
    width, _, patch, _ = clip_sizes.shape(source, "visual.conv1.weight", 4, layout)
    positions = clip_sizes.shape(source, "visual.positional_embedding", 2, layout)[0]
    blocks = "visual.transformer.resblocks"
    heads = width // settings["head_width"] if settings.get("head_width") else None
    return {
        "image_size": clip_sizes.image_size(clip_sizes.side(positions, f"layout {layout}"), patch, settings.get("image_size")),
        "patch_size": patch,
        "width": width,
        "layers": clip_sizes.depth(source, blocks),
        "heads": clip_sizes.heads(width, heads, f"layout {layout}: vision"),
        "mlp_width": clip_sizes.shape(source, f"{blocks}.0.mlp.c_fc.weight", 2, layout)[0],
        "activation": activation,
    }


def _resnet(source: Mapping[str, np.ndarray], settings: Mapping[str, Any], activation: str, layout: str) -> dict[str, Any]:
    del activation  # the tower is made of ReLUs
    positions, channels = clip_sizes.shape(source, "visual.attnpool.positional_embedding", 2, layout)
    layers = tuple(clip_sizes.depth(source, f"visual.layer{n}") for n in range(1, 5))
    heads = channels // settings["head_width"] if settings.get("head_width") else None
    return {
        "image_size": 32 * clip_sizes.side(positions, f"layout {layout}"),
        "layers": layers,
        "width": clip_sizes.shape(source, "visual.conv3.weight", 4, layout)[0],
        "heads": clip_sizes.heads(channels, heads, f"layout {layout}: attention pool"),
    }


def _convnext(source: Mapping[str, np.ndarray], settings: Mapping[str, Any], activation: str, layout: str) -> dict[str, Any]:
    del activation  # timm's trunk has the exact GELU whatever the text tower has
    stages = range(clip_sizes.depth(source, "visual.trunk.stages"))
    dims = tuple(clip_sizes.shape(source, f"visual.trunk.stages.{n}.blocks.0.conv_dw.weight", 4, layout)[0] for n in stages)
    size = settings.get("image_size", 256)
    fields: dict[str, Any] = {
        "image_size": size if isinstance(size, int) else 256,
        "depths": tuple(clip_sizes.depth(source, f"visual.trunk.stages.{n}.blocks") for n in stages),
        "dims": dims,
        "drop_path": settings.get("timm_drop_path") or 0.0,
        "epsilon": _TIMM_EPSILON.get(dims, 1e-6),
    }
    if "visual.head.proj.weight" in source:
        return {**fields, "head": "linear"}
    return {**fields, "head": "mlp", "head_width": clip_sizes.shape(source, "visual.head.mlp.fc1.weight", 2, layout)[0]}


_TOWERS = {
    "visual.class_embedding": ("vit", "segjax.nets.clip:VisionTransformer", _vit, "visual.proj", 1),
    "visual.attnpool.c_proj.weight": ("resnet", "segjax.nets.clip:ModifiedResNet", _resnet, "visual.attnpool.c_proj.weight", 0),
    "visual.trunk.head.norm.weight": ("convnext", "segjax.nets.clip:ConvNeXtTower", _convnext, "", 0),
}
"""A key that only one kind of tower has -> its name, its module, its sizes, the key whose axis is as long as the embeddings."""


def _tower(source: Mapping[str, np.ndarray], model: Mapping[str, Any], settings: Mapping[str, Any], layout: str) -> tuple[str, str, dict]:
    """(kind, module, fields with embed_dim) of the vision tower. WeightsError: none that is known."""
    for key, (kind, make, sizes, projection, axis) in _TOWERS.items():
        if key in source:
            projection = projection or next((key for key in _CONVNEXT_HEADS if key in source), _CONVNEXT_HEADS[0])
            fields = sizes(source, settings, _activation(source, model), layout)
            return kind, make, {"embed_dim": clip_sizes.shape(source, projection, 2, layout)[axis], **fields}
    raise WeightsError(f"layout {layout}: no ViT, ResNet or ConvNeXt in {[key for key in sorted(source) if key.startswith('visual')][:10]}")


_CONVNEXT_HEADS = ("visual.head.mlp.fc2.weight", "visual.head.proj.weight")


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    model, vision, text = _settings(config, "clip_openai")
    kind, _, fields = _tower(source, model, vision, "clip_openai")
    prefix = "text." if _form(source) is CUSTOM_TEXT else ""
    blocks = f"{prefix}transformer.resblocks"
    vocab_size, width = clip_sizes.shape(source, f"{prefix}token_embedding.weight", 2, "clip_openai")
    heads = text.get("heads", 8) if text else None
    spec = {
        "make": "segjax.nets.clip:clip",
        "vision": kind,
        "embed_dim": fields.pop("embed_dim"),
        **{f"vision_{name}": value for name, value in fields.items()},
        "text_vocab_size": vocab_size,
        "text_context_length": clip_sizes.shape(source, f"{prefix}positional_embedding", 2, "clip_openai")[0],
        "text_width": width,
        "text_layers": clip_sizes.depth(source, blocks),
        "text_heads": clip_sizes.heads(width, heads, "layout clip_openai: text"),
        "text_mlp_width": clip_sizes.shape(source, f"{blocks}.0.mlp.c_fc.weight", 2, "clip_openai")[0],
        "text_activation": _activation(source, model),
    }
    preprocess = config.get("preprocess_cfg") or {}
    return {**spec, **{name: tuple(preprocess[name]) for name in ("mean", "std") if preprocess.get(name)}}


def _vision_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    model, vision, _ = _settings(config, "clip_openai_vision")
    _, make, fields = _tower(source, model, vision, "clip_openai_vision")
    return {"make": make, **fields}


def _has(keys: Iterable[str]) -> tuple[bool, bool]:
    """Whether a file holds a vision tower and a text tower in these spellings."""
    keys = set(keys)
    return any(key in keys for key in _TOWERS), any(f"{prefix}token_embedding.weight" in keys for prefix in ("", "text."))


CLIP_OPENAI = Public(
    "clip_openai",
    recognises=lambda keys: _has(keys) == (True, True),
    layout=_form,
    model=_model,
    config=clip_openai_config.config,
    file="open_clip_model.safetensors",
    config_file=clip_openai_config.FILE,
    forms=(PLAIN, WITH_SIZES, CUSTOM_TEXT),
)
CLIP_OPENAI_VISION = Public(
    "clip_openai_vision", recognises=lambda keys: _has(keys) == (True, False), layout=lambda keys: VISION, model=_vision_model
)
"""Named for a whole CLIP's file (`--layout=clip_openai_vision`), it takes the vision tower and leaves the text (as CLOUDS)."""
