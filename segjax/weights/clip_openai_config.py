"""The open_clip_config.json with which open_clip opens a CLIP that segjax has written."""

from collections.abc import Mapping
from typing import Any

from segjax.errors import WeightsError

FILE = "open_clip_config.json"
_TIMM = {
    ((3, 3, 9, 3), (96, 192, 384, 768)): "convnext_tiny",
    ((3, 3, 27, 3), (96, 192, 384, 768)): "convnext_small",
    ((3, 3, 27, 3), (128, 256, 512, 1024)): "convnext_base",
    ((3, 3, 27, 3), (192, 384, 768, 1536)): "convnext_large",
    ((3, 3, 27, 3), (256, 512, 1024, 2048)): "convnext_xlarge",
    ((3, 4, 30, 3), (384, 768, 1536, 3072)): "convnext_xxlarge",
}
"""(depths, widths) -> what timm calls the trunk: open_clip builds it by that name."""


def config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content from the flat settings of `segjax.nets.clip:clip`. WeightsError: open_clip has no way to say this network."""
    if "vision" not in spec:
        raise WeightsError(f"{spec.get('make', 'this network')} is no CLIP with both towers: open_clip_config.json is for those")
    visions = {"vit": _vit, "resnet": _resnet, "convnext": _convnext}
    activations = {spec[name] for name in ("text_activation", "vision_activation") if name in spec}
    if len(activations) != 1:
        raise WeightsError(f"towers with the activations {sorted(activations)}: open_clip has one for both")
    if spec["text_epsilon"] != 1e-5 or spec["text_eos_token_id"] not in (2, spec["text_vocab_size"] - 1):
        raise WeightsError(
            "a text tower with another epsilon than 1e-5 or an end token that is not its largest id: open_clip knows neither"
        )
    text = {
        "context_length": spec["text_context_length"],
        "vocab_size": spec["text_vocab_size"],
        **{name: spec[f"text_{name}"] for name in ("width", "heads", "layers")},
        "mlp_ratio": spec["text_mlp_width"] / spec["text_width"],
    }
    model = {
        "embed_dim": spec["embed_dim"],
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": visions[spec["vision"]](spec),
        "text_cfg": text,
    }
    return {"model_cfg": model, "preprocess_cfg": {"mean": list(spec["mean"]), "std": list(spec["std"])}}


def _vit(spec: Mapping[str, Any]) -> dict[str, Any]:
    if spec["vision_epsilon"] != 1e-5:
        raise WeightsError(f"a vision tower with the epsilon {spec['vision_epsilon']}: open_clip's have 1e-5")
    return {
        **{name: spec[f"vision_{name}"] for name in ("image_size", "patch_size", "width", "layers")},
        "head_width": spec["vision_width"] // spec["vision_heads"],
        "mlp_ratio": spec["vision_mlp_width"] / spec["vision_width"],
    }


def _resnet(spec: Mapping[str, Any]) -> dict[str, Any]:
    channels = spec["vision_width"] * 4 * 2 ** (len(spec["vision_layers"]) - 1)
    head_width = channels // spec["vision_heads"]
    layers = list(spec["vision_layers"])
    return {"image_size": spec["vision_image_size"], "layers": layers, "width": spec["vision_width"], "head_width": head_width}


def _convnext(spec: Mapping[str, Any]) -> dict[str, Any]:
    found = _TIMM.get((tuple(spec["vision_depths"]), tuple(spec["vision_dims"])))
    if found is None:
        sizes = f"depths {tuple(spec['vision_depths'])}, widths {tuple(spec['vision_dims'])}"
        raise WeightsError(f"a ConvNeXt with {sizes}: timm has no name for it: known {', '.join(_TIMM.values())}")
    return {
        "timm_model_name": found,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": spec["vision_head"],
        "timm_drop": 0.0,
        "timm_drop_path": spec["vision_drop_path"],
        "image_size": spec["vision_image_size"],
    }
