"""Names of CLIP at Hugging Face: CLIPModel, CLIPTextModel (Stable Diffusion's text encoder), CLIPVisionModel, projected or not.

The separate query, key and value of a block lie side by side in the one `in_proj` here. Sizes come from the shapes; what shapes cannot
tell (heads, activation, end token, epsilon) from config.json, where an absent key means the default of transformers' config classes.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.weights import clip_config, clip_sizes
from segjax.weights.engine import CONV, DENSE, IDENTITY, Layout, Public, Rule

_BUFFERS = (r"(.*\.)?embeddings\.position_ids",)
_OTHER_TOWER = (r"text_model\..*", r"text_projection\.weight", "logit_scale")


def _blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The scanned blocks under the path `ours` and the prefix `theirs`."""
    rules = []
    for kind, suffix, transform in (("kernel", "weight", DENSE), ("bias", "bias", IDENTITY)):
        parts = tuple(f"{theirs}.{{i}}.self_attn.{part}_proj.{suffix}" for part in "qkv")
        rules.append(Rule(f"params/{ours}resblocks/in_proj/{kind}", parts, transform, join=-1))
        for here, there in (("out_proj", "self_attn.out_proj"), ("c_fc", "mlp.fc1"), ("c_proj", "mlp.fc2")):
            rules.append(Rule(f"params/{ours}resblocks/{here}/{kind}", f"{theirs}.{{i}}.{there}.{suffix}", transform))
    for kind, suffix in (("scale", "weight"), ("bias", "bias")):
        rules.append(Rule(f"params/{ours}resblocks/ln_(\\d)/{kind}", f"{theirs}.{{i}}.layer_norm{{0}}.{suffix}"))
    return tuple(rules)


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return Rule(f"params/{ours}/scale", f"{theirs}.weight"), Rule(f"params/{ours}/bias", f"{theirs}.bias")


def _text(ours: str, prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"params/{ours}token_embedding", f"{prefix}embeddings.token_embedding.weight"),
        Rule(f"params/{ours}positional_embedding", f"{prefix}embeddings.position_embedding.weight"),
        *_blocks(ours, f"{prefix}encoder.layers"),
        *_norm(f"{ours}ln_final", f"{prefix}final_layer_norm"),
        Rule(f"params/{ours}text_projection/kernel", "text_projection.weight", DENSE),
    )


def _vision(ours: str, prefix: str) -> tuple[Rule, ...]:
    return (
        Rule(f"params/{ours}class_embedding", f"{prefix}embeddings.class_embedding"),
        Rule(f"params/{ours}conv1/kernel", f"{prefix}embeddings.patch_embedding.weight", CONV),
        Rule(f"params/{ours}positional_embedding", f"{prefix}embeddings.position_embedding.weight"),
        *_norm(f"{ours}ln_pre", f"{prefix}pre_layrnorm"),  # misspelt there
        *_blocks(ours, f"{prefix}encoder.layers"),
        *_norm(f"{ours}ln_post", f"{prefix}post_layernorm"),
        Rule(f"params/{ours}proj/kernel", "visual_projection.weight", DENSE),
    )


BOTH = Layout(
    "clip_hf", (*_text("text/", "text_model."), *_vision("visual/", "vision_model."), Rule("params/logit_scale", "logit_scale")), _BUFFERS
)
TEXT = Layout("clip_text_hf", _text("", "text_model."), _BUFFERS)
TEXT_BARE = Layout("clip_text_hf_bare", _text("", ""), _BUFFERS)
"""As transformers 5 saves a CLIPTextModel alone: no `text_model.` before its keys."""
VISION = Layout("clip_vision_hf", _vision("", "vision_model."), (*_BUFFERS, *_OTHER_TOWER))
VISION_BARE = Layout("clip_vision_hf_bare", _vision("", ""), _BUFFERS)


def _position_ids(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The buffers 0, 1, 2, ... beside every table of positions, which transformers wrote until 4.30."""
    tables = {key.replace("position_embedding.weight", "position_ids"): x for key, x in arrays.items() if "position_embedding" in key}
    return {key: np.arange(len(table), dtype=np.int64)[None] for key, table in tables.items()}


def _with_ids(layout: Layout) -> Layout:
    return dataclasses.replace(layout, name=f"{layout.name}_ids", derived=_position_ids)


BOTH_IDS, TEXT_IDS, VISION_IDS = _with_ids(BOTH), _with_ids(TEXT), _with_ids(VISION)


def _settings(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The "text" or "vision" part of a config.json: of a CLIPModel's, or the whole of a single tower's."""
    if f"{kind}_config" not in config:
        return dict(config)
    return {**(config[f"{kind}_config"] or {}), **(config.get(f"{kind}_config_dict") or {})}


def _tower(source: Mapping[str, np.ndarray], config: Mapping[str, Any], prefix: str, heads: int, layout: str) -> dict[str, Any]:
    """What both towers have. heads: transformers' default where a config leaves it out."""
    layers = f"{prefix}encoder.layers"
    mlp_width, width = clip_sizes.shape(source, f"{layers}.0.mlp.fc1.weight", 2, layout)
    return {
        "width": width,
        "layers": clip_sizes.depth(source, layers),
        "heads": clip_sizes.heads(width, config.get("num_attention_heads", heads if config else None), f"layout {layout}"),
        "mlp_width": mlp_width,
        "activation": clip_sizes.activation(config.get("hidden_act", "quick_gelu"), f"layout {layout}"),
        "epsilon": config.get("layer_norm_eps", 1e-5),
    }


def _text_fields(source: Mapping[str, np.ndarray], config: Mapping[str, Any], prefix: str, layout: str) -> dict[str, Any]:
    settings = _settings(config, "text")
    return {
        "vocab_size": clip_sizes.shape(source, f"{prefix}embeddings.token_embedding.weight", 2, layout)[0],
        "context_length": clip_sizes.shape(source, f"{prefix}embeddings.position_embedding.weight", 2, layout)[0],
        "eos_token_id": settings.get("eos_token_id", 49407 if settings else 2),
        **_tower(source, settings, prefix, 8, layout),
    }


def _vision_fields(source: Mapping[str, np.ndarray], config: Mapping[str, Any], prefix: str, layout: str) -> dict[str, Any]:
    settings = _settings(config, "vision")
    patch = clip_sizes.shape(source, f"{prefix}embeddings.patch_embedding.weight", 4, layout)[2]
    positions = clip_sizes.shape(source, f"{prefix}embeddings.position_embedding.weight", 2, layout)[0]
    grid = clip_sizes.side(positions, f"layout {layout}")
    size = clip_sizes.image_size(grid, patch, settings.get("image_size", 224))
    return {"image_size": size, "patch_size": patch, **_tower(source, settings, prefix, 12, layout)}


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    text = _text_fields(source, config, "text_model.", "clip_hf")
    vision = _vision_fields(source, config, "vision_model.", "clip_hf")
    fields = {**{f"text_{name}": value for name, value in text.items()}, **{f"vision_{name}": value for name, value in vision.items()}}
    embed_dim = clip_sizes.shape(source, "text_projection.weight", 2, "clip_hf")[0]
    return {"make": "segjax.nets.clip:clip", "vision": "vit", "embed_dim": embed_dim, **fields}


def _embed_dim(source: Mapping[str, np.ndarray], key: str) -> int | None:
    return int(source[key].shape[0]) if key in source else None


def _text_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    fields = _text_fields(source, config, "" if _text_form(source) is TEXT_BARE else "text_model.", "clip_text_hf")
    return {"make": "segjax.nets.clip:TextTransformer", "embed_dim": _embed_dim(source, "text_projection.weight"), **fields}


def _vision_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    fields = _vision_fields(source, config, "" if _vision_form(source) is VISION_BARE else "vision_model.", "clip_vision_hf")
    return {"make": "segjax.nets.clip:VisionTransformer", "embed_dim": _embed_dim(source, "visual_projection.weight"), **fields}


def _text_form(keys: Iterable[str]) -> Layout:
    if "embeddings.token_embedding.weight" in keys:
        return TEXT_BARE
    return TEXT_IDS if "text_model.embeddings.position_ids" in keys else TEXT


def _vision_form(keys: Iterable[str]) -> Layout:
    if "embeddings.class_embedding" in keys:
        return VISION_BARE
    return VISION_IDS if "vision_model.embeddings.position_ids" in keys else VISION


def _form(keys: Iterable[str]) -> Layout:
    return BOTH_IDS if "text_model.embeddings.position_ids" in keys else BOTH


def _towers(keys: Iterable[str]) -> set[str]:
    """Which of "text" and "vision" a file holds in these spellings, by what each has and no other network does."""
    keys = set(keys)
    found = set()
    for tower, own in (("text", "embeddings.token_embedding.weight"), ("vision", "pre_layrnorm.weight")):
        for prefix in ("", f"{tower}_model."):
            if {f"{prefix}{own}", f"{prefix}encoder.layers.0.self_attn.q_proj.weight"} <= keys:
                found.add(tower)
    return found


CLIP_HF = Public(
    "clip_hf",
    recognises=lambda keys: _towers(keys) == {"text", "vision"},
    layout=_form,
    model=_model,
    config=clip_config.both,
    forms=(BOTH, BOTH_IDS),
)
CLIP_TEXT_HF = Public(
    "clip_text_hf",
    recognises=lambda keys: _towers(keys) == {"text"},
    layout=_text_form,
    model=_text_model,
    config=clip_config.text_model,
    forms=(TEXT, TEXT_IDS, TEXT_BARE),
)
CLIP_VISION_HF = Public(
    "clip_vision_hf",
    recognises=lambda keys: _towers(keys) == {"vision"},
    layout=_vision_form,
    model=_vision_model,
    config=clip_config.vision_model,
    forms=(VISION, VISION_IDS, VISION_BARE),
)
"""Named for a whole CLIPModel's file (`--layout=clip_vision_hf`), it takes the vision tower and leaves the text."""
