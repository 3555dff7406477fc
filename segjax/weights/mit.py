"""The public MiT encoders by themselves: what their files describe, Hugging Face's config, both ways.

`segjax.weights.segformer` and `segjax.weights.daformer` take the same rules under `backbone`. Going back to Hugging Face, weights from
NVlabs meet LayerNorms with epsilon 1e-5 instead of 1e-6, as in the models published there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import mit_names as names
from segjax.weights.engine import Layout, Public

EPSILONS = {"nvlabs": (1e-6, 1e-5), "hf": (1e-5, 1e-5), "hf_memory": (1e-5, 1e-5), "mmseg": (1e-6, 1e-6)}
"""Of blocks and stages, and of patch and reduction convolutions. Hugging Face's code ignores its config's `layer_norm_eps`."""


def settings(source: Mapping[str, np.ndarray], style: str, theirs: str, config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Arguments of `segjax.nets.mit:MixTransformer`, from the arrays' shapes and, for heads and strides, from Hugging Face's config.

    WeightsError: no encoder of four stages under those names, or one that the config does not describe.
    """
    key = lambda place, s, i=0: theirs + names.key(place, style, s, i)
    needed = [key(place, s) for s in names.STAGES for place in ("patch_embed{s}/proj", "block{s}/norm1", "block{s}/mlp/fc1")]
    if absent := [name for name in needed if name not in source or source[name].ndim == 0]:
        raise WeightsError(f"layout {layout}: no MiT of four stages, lacks {', '.join(absent[:3])}: found {sorted(source)[:10]}")
    patches = [source[key("patch_embed{s}/proj", s)] for s in names.STAGES]
    dims = tuple(int(patch.shape[0]) for patch in patches)
    hidden = [int(source[key("block{s}/mlp/fc1", s)].shape[0]) for s in names.STAGES]
    reductions = [source.get(key("block{s}/attn/sr", s)) for s in names.STAGES]
    depths = tuple(next(i for i in range(len(source) + 1) if key("block{s}/norm1", s, i) not in source) for s in names.STAGES)
    found = {
        "dims": dims,
        "depths": depths,
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": tuple(h // d if h % d == 0 else h / d for h, d in zip(hidden, dims, strict=True)),
        "sr_ratios": tuple(1 if kernel is None else int(kernel.shape[-1]) for kernel in reductions),
        "patch_sizes": tuple(int(patch.shape[-1]) for patch in patches),
        **dict(zip(("block_epsilon", "patch_epsilon"), EPSILONS[style], strict=True)),
    }
    return found | _from_config(found, config, layout)


CONFIG_KEYS = {
    "dims": "hidden_sizes",
    "depths": "depths",
    "num_heads": "num_attention_heads",
    "mlp_ratios": "mlp_ratios",
    "sr_ratios": "sr_ratios",
    "patch_sizes": "patch_sizes",
    "strides": "strides",
}
"""Our argument -> the key of Hugging Face's config.json."""
_NOT_IN_SHAPES = ("num_heads", "strides")


def _from_config(found: Mapping[str, Any], config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """What the config alone tells; the rest of it must agree with the shapes."""
    if not config:
        return {}
    if config.get("model_type", "segformer") != "segformer" or config.get("hidden_act", "gelu") != "gelu":
        kind, act = config.get("model_type"), config.get("hidden_act")
        raise WeightsError(f"layout {layout}: config.json says model_type {kind!r}, hidden_act {act!r}: expected 'segformer' and 'gelu'")
    told = {ours: tuple(config[theirs]) for ours, theirs in CONFIG_KEYS.items() if theirs in config}
    wrong = [CONFIG_KEYS[ours] for ours, value in told.items() if ours not in _NOT_IN_SHAPES and value != found[ours]]
    if wrong:
        raise WeightsError(f"layout {layout}: config.json does not describe the weights beside it: {', '.join(wrong)} differ")
    extra = {"drop_path": float(config["drop_path_rate"])} if "drop_path_rate" in config else {}
    return {ours: told[ours] for ours in _NOT_IN_SHAPES if ours in told} | extra


def config(spec: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of Hugging Face's SegformerModel for a network over a MiT."""
    known = {"strides": (4, 2, 2, 2), **spec}
    return {
        "architectures": ["SegformerModel"],
        "model_type": "segformer",
        **{theirs: list(known[ours]) for ours, theirs in CONFIG_KEYS.items()},
        "num_channels": 3,
        "num_encoder_blocks": len(spec["dims"]),
        "drop_path_rate": spec.get("drop_path", 0.1),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "reshape_last_stage": True,
    }


_AT = "(?:backbone/)?"
NVLABS = Layout("mit_nvlabs", names.rules("nvlabs", _AT, ""), (r"head\.(weight|bias)",))
"""mit_bN.pth; the ImageNet classifier `head` has no place in a segmentation network and is left out."""
MMSEG = Layout("mit_mmseg", names.rules("mmseg", _AT, ""))
HF_FORMS = tuple(
    Layout(f"mit_hf{style.removeprefix('hf')}{name}", names.rules(style, _AT, prefix), (r"classifier\.(weight|bias)",))
    for style, name, prefix in (
        ("hf", "", "segformer.encoder."),
        ("hf", "_bare", "encoder."),
        ("hf_memory", "", "segformer."),
        ("hf_memory", "_bare", ""),
    )
)
"""SegformerForImageClassification and SegformerModel, on disk (transformers 4 and 5) and as transformers 5 holds them in memory."""
_HF_FIRST = {
    "segformer.encoder.patch_embeddings.0.proj.weight": ("hf", "segformer.encoder."),
    "encoder.patch_embeddings.0.proj.weight": ("hf", "encoder."),
    "segformer.stages.0.patch_embeddings.proj.weight": ("hf_memory", "segformer."),
    "stages.0.patch_embeddings.proj.weight": ("hf_memory", ""),
}


def hf_form(keys: Iterable[str]) -> int:
    """Which of the four forms of a Hugging Face encoder these keys have; the first where none does (paths of segjax)."""
    return next((n for n, first in enumerate(_HF_FIRST) if first in keys), 0)


def hf_settings(source: Mapping[str, np.ndarray], config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """`settings` of any Hugging Face form."""
    style, prefix = tuple(_HF_FIRST.values())[hf_form(source)]
    return settings(source, style, prefix, config, layout)


def is_hf(keys: Iterable[str]) -> bool:
    """Whether an encoder of Hugging Face's SegFormer is there."""
    return any(first in keys for first in _HF_FIRST)


_MAKE = {"make": "segjax.nets.mit:MixTransformer"}
MIT_NVLABS = Public(
    "mit_nvlabs",
    recognises=lambda keys: "patch_embed1.proj.weight" in keys,
    layout=lambda keys: NVLABS,
    model=lambda source, config: _MAKE | settings(source, "nvlabs", "", {}, "mit_nvlabs"),
)
MIT_MMSEG = Public(
    "mit_mmseg",
    recognises=lambda keys: "layers.0.0.projection.weight" in keys,
    layout=lambda keys: MMSEG,
    model=lambda source, config: _MAKE | settings(source, "mmseg", "", {}, "mit_mmseg"),
)
MIT_HF = Public(
    "mit_hf",
    recognises=lambda keys: is_hf(keys) and not any(key.startswith("decode_head.") for key in keys),
    layout=lambda keys: HF_FORMS[hf_form(keys)],
    model=lambda source, told: _MAKE | hf_settings(source, told, "mit_hf"),
    config=config,
    forms=HF_FORMS,
)
