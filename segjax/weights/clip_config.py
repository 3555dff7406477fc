"""The config.json with which transformers opens a CLIP that segjax has written: CLIPModel, CLIPTextModel, CLIPVisionModel."""

from collections.abc import Mapping
from typing import Any

from segjax.errors import WeightsError

_TOWER = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
}
_TEXT = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings", "eos_token_id": "eos_token_id"}
_VISION = {"image_size": "image_size", "patch_size": "patch_size"}
_LEGACY_EOS = 2  # the public configs that have it say bos_token_id 0 beside it, and all of them pad_token_id 1


def text(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config of a CLIPTextModel (with projection where there is one) from a TextTransformer's fields, `prefix` before each."""
    fields = {"model_type": "clip_text_model", **_renamed(spec, prefix, _TOWER | _TEXT)}
    end = fields["eos_token_id"]
    return {**fields, "bos_token_id": 0 if end == _LEGACY_EOS else end - 1, "pad_token_id": 1}


def vision(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config of a CLIPVisionModel (with projection where there is one) from a VisionTransformer's fields, `prefix` before each."""
    return {"model_type": "clip_vision_model", "num_channels": 3, **_renamed(spec, prefix, _TOWER | _VISION)}


def text_model(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a text tower alone."""
    return {**_architecture(spec, "CLIPTextModel"), **text(spec)}


def vision_model(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a vision tower alone. WeightsError: not a ViT."""
    if not str(spec["make"]).endswith(":VisionTransformer"):
        raise WeightsError(f"{spec['make']}: transformers has no such CLIP tower, only the vision transformer")
    return {**_architecture(spec, "CLIPVisionModel"), **vision(spec)}


def both(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a whole CLIP. WeightsError: its vision tower is no ViT."""
    if spec.get("vision") != "vit":
        raise WeightsError(f"a CLIP with vision={spec.get('vision')!r}: transformers has only the vision transformer")
    parts = {"text_config": text(spec, "text_"), "vision_config": vision(spec, "vision_")}
    for part in parts.values():
        part["projection_dim"] = spec["embed_dim"]
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": spec["embed_dim"],
        "logit_scale_init_value": 2.6592,
        **parts,
    }


def _architecture(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    if spec.get("embed_dim") is None:
        return {"architectures": [name], "projection_dim": spec["width"]}
    return {"architectures": [f"{name}WithProjection"], "projection_dim": spec["embed_dim"]}


def _renamed(spec: Mapping[str, Any], prefix: str, names: Mapping[str, str]) -> dict[str, Any]:
    if missing := [f"{prefix}{name}" for name in names if f"{prefix}{name}" not in spec]:
        raise WeightsError(f"the network has no {', '.join(missing)}, which config.json needs: it has {', '.join(sorted(spec))}")
    return {theirs: spec[f"{prefix}{ours}"] for ours, theirs in names.items()}
