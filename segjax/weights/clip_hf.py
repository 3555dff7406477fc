"""Names of CLIP at Hugging Face: CLIPModel, CLIPTextModel (Stable Diffusion's text encoder), CLIPVisionModel.

The separate query, key and value of a block lie side by side in the one `in_proj` here. Sizes come from the shapes; what shapes cannot
tell (heads, activation, end token, epsilon) from config.json, where an absent key means the default of transformers' config classes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import DENSE, IDENTITY, Layout, Public, Rule

_BUFFERS = (r"(.*\.)?embeddings\.position_ids",)  # 0, 1, 2, ...: written until transformers 4.30


def blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
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
        *blocks(ours, f"{prefix}encoder.layers"),
        *_norm(f"{ours}ln_final", f"{prefix}final_layer_norm"),
        Rule(f"params/{ours}text_projection/kernel", "text_projection.weight", DENSE),
    )


PREFIXED = Layout("clip_text_hf", _text("", "text_model."), _BUFFERS)
BARE = Layout("clip_text_hf_bare", _text("", ""), _BUFFERS)
"""As transformers 5 saves a CLIPTextModel alone: no `text_model.` before its keys."""


def _text_form(keys: Iterable[str]) -> Layout:
    return BARE if "embeddings.token_embedding.weight" in keys else PREFIXED


def settings(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The "text" or "vision" part of a config.json: of a CLIPModel's, or the whole of a single tower's."""
    if f"{kind}_config" not in config:
        return dict(config)
    return {**config[f"{kind}_config"], **(config.get(f"{kind}_config_dict") or {})}


def depth(source: Mapping[str, np.ndarray], prefix: str) -> int:
    """How many layers `{prefix}.N.` there are."""
    return len({found[1] for key in source if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))})


def heads(width: int, count: int | None, where: str) -> int:
    """A head count that divides the width; without one, OpenAI's rule: a head for every 64 channels. WeightsError."""
    count = max(1, width // 64) if count is None else count
    if not isinstance(count, int) or count < 1 or width % count:
        raise WeightsError(f"{where}: {count!r} attention heads do not divide the width {width}: is the config another network's?")
    return count


def activation(name: Any, where: str) -> str:
    """The activation of a config. WeightsError: not one that CLIP's weights come with."""
    if name not in ("gelu", "quick_gelu"):
        raise WeightsError(f"{where}: activation {name!r}: expected 'gelu' or 'quick_gelu'")
    return name


def text_fields(source: Mapping[str, np.ndarray], config: Mapping[str, Any], prefix: str, name: str) -> dict[str, Any]:
    """The fields of a TextTransformer, its projection left out. WeightsError: no such tower."""
    layer = f"{prefix}encoder.layers"
    try:
        vocab_size, width = source[f"{prefix}embeddings.token_embedding.weight"].shape
        context = source[f"{prefix}embeddings.position_embedding.weight"].shape[0]
        mlp_width = source[f"{layer}.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError):
        raise WeightsError(f"layout {name}: no text tower ({prefix}embeddings, {layer}.N): found {sorted(source)[:10]}") from None
    return {
        "vocab_size": vocab_size,
        "context_length": context,
        "width": width,
        "layers": depth(source, layer),
        "heads": heads(width, config.get("num_attention_heads", 8 if config else None), f"layout {name}: text"),
        "mlp_width": mlp_width,
        "activation": activation(config.get("hidden_act", "quick_gelu"), f"layout {name}: text"),
        "eos_token_id": config.get("eos_token_id", 49407 if config else 2),
        "epsilon": config.get("layer_norm_eps", 1e-5),
    }


def _text_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "" if _text_form(source) is BARE else "text_model."
    fields = text_fields(source, settings(config, "text"), prefix, "clip_text_hf")
    projection = source.get("text_projection.weight")
    return {"make": "segjax.nets.clip:TextTransformer", **fields, "embed_dim": None if projection is None else projection.shape[0]}


def _is_text(keys: Iterable[str]) -> bool:
    keys = set(keys)
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    found = {"embeddings.token_embedding.weight", layer} <= keys or {
        "text_model.embeddings.token_embedding.weight",
        f"text_model.{layer}",
    } <= keys
    return found and not any(key.startswith(("vision_model.", "visual")) for key in keys)


CLIP_TEXT_HF = Public("clip_text_hf", recognises=_is_text, layout=_text_form, model=_text_model, forms=(PREFIXED, BARE))
