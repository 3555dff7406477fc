"""Names of diffusers' UNet2DConditionModel as Stable Diffusion 1.x and 2.x use it.

Two forms: `proj_in` and `proj_out` of a transformer are 1x1 convolutions (1.x) or linear layers (2.x, `use_linear_projection`). Heads
cannot be read off shapes, so a config.json must lie beside the weights; an absent key means diffusers' default.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.diffusers_rules import Place, convolution, linear, norm, resnet, top
from segjax.weights.engine import DENSE, POINTWISE, Layout, Public, Rule, Transform

_NAME = "unet_diffusers"
_SINGLE = Place(r"params/(down|up)_blocks_(\d+)/layer_(\d+)", "{0}_blocks.{1}", 3)
_RUN = Place(r"params/(down|up)_blocks_(\d+)/layers_(\d+)", "{0}_blocks.{1}", 3, run=2)
_MID = Place("params/mid_block", "mid_block", 0)


def _transformer(place: Place, projection: Transform) -> tuple[Rule, ...]:
    here = place.groups
    block = place.below(r"transformer_blocks_(\d+)", f"transformer_blocks.{{{here}}}", 1)
    attention = block.below("(attn[12])", f"{{{here + 1}}}", 1)
    return (
        *norm(place.below("norm", "norm")),
        *linear(place.below("(proj_in|proj_out)", f"{{{here}}}", 1), projection),
        *norm(block.below("(norm[123])", f"{{{here + 1}}}", 1)),
        attention.rule("(to_[qkv])/kernel", f"{{{here + 2}}}.weight", DENSE),
        *linear(attention.below("to_out_0", "to_out.0")),
        *linear(block.below("ff/net_0_proj", "ff.net.0.proj")),
        *linear(block.below("ff/net_2", "ff.net.2")),
    )


def _rules(projection: Transform) -> tuple[Rule, ...]:
    layers = [(_SINGLE, "{2}"), (_RUN, "{i}")]
    return (
        *top(),
        *linear(Place("params/time_embedding/(linear_[12])", "time_embedding.{0}", 1)),
        *(rule for place, n in layers for rule in resnet(place.below("resnets", f"resnets.{n}"))),
        *(rule for place, n in layers for rule in _transformer(place.below("attentions", f"attentions.{n}"), projection)),
        *resnet(_MID.below(r"resnets_(\d)", "resnets.{0}", 1)),
        *_transformer(_MID.below(r"attentions_(\d)", "attentions.{0}", 1), projection),
        *convolution(Place(r"params/(down|up)_blocks_(\d+)/(down|up)samplers_0/conv", "{0}_blocks.{1}.{2}samplers.0.conv", 3)),
    )


CONVOLUTIONS = Layout(_NAME, _rules(POINTWISE))
LINEAR = Layout(f"{_NAME}_linear", _rules(DENSE))
_PROJECTION = "mid_block.attentions.0.proj_in.weight"

FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
"""Options of UNet2DConditionModel that Stable Diffusion 1.x and 2.x leave at these values; no other is built here."""
DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def check_fixed(config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], name: str) -> None:
    """WeightsError: an option that this network does not have."""
    for key, values in fixed.items():
        if config.get(key, values[0]) not in values:
            raise WeightsError(f"layout {name}: config.json has {key}={config[key]!r}, expected {values[0]!r}: another kind of network")


def chosen(config: Mapping[str, Any], key: str, kinds: Mapping[str, bool], default: tuple[str, ...], name: str) -> tuple[bool, ...]:
    """Which blocks attend. WeightsError: a block of another kind."""
    blocks = tuple(config.get(key, default))
    if unknown := [block for block in blocks if block not in kinds]:
        raise WeightsError(f"layout {name}: config.json has {key} with {unknown[0]!r}, expected {' or '.join(kinds)}")
    return tuple(kinds[block] for block in blocks)


def _each(value: Any, key: str, count: int) -> tuple[int, ...]:
    """A number for every block, or one number for all."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * count
    if len(values) != count or not all(isinstance(v, int) and v > 0 for v in values):
        raise WeightsError(f"layout {_NAME}: config.json has {key}={value!r}, expected a positive number, or {count} of them")
    return values


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    if "block_out_channels" not in config:
        raise WeightsError(f"layout {_NAME}: needs the config.json of the UNet beside its weights (heads cannot be read off shapes)")
    check_fixed(config, FIXED, _NAME)
    widths = tuple(config["block_out_channels"])
    count = len(widths)
    down = chosen(config, "down_block_types", DOWN, ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), _NAME)
    up = chosen(config, "up_block_types", UP, ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, _NAME)
    if not len(down) == len(up) == count:
        raise WeightsError(f"layout {_NAME}: config.json has {len(down)} down and {len(up)} up blocks for {count} widths")
    heads = _each(config.get("attention_head_dim", 8), "attention_head_dim", count)
    for width, number in zip(widths, heads, strict=True):
        if width % number:
            raise WeightsError(f"layout {_NAME}: config.json has {number} heads (attention_head_dim) in a block of {width} channels")
    sample_size = config.get("sample_size") or 64
    return {
        "make": "segjax.nets.unet:UNet",
        "widths": widths,
        "heads": heads,
        "layers": _each(config.get("layers_per_block", 2), "layers_per_block", count),
        "transformers": _each(config.get("transformer_layers_per_block", 1), "transformer_layers_per_block", count),
        "down_attention": down,
        "up_attention": up,
        "context_features": config.get("cross_attention_dim", 1280),
        "in_channels": config.get("in_channels", 4),
        "out_channels": config.get("out_channels", 4),
        "groups": config.get("norm_num_groups", 32),
        "epsilon": config.get("norm_eps", 1e-5),
        "flip_sin_to_cos": config.get("flip_sin_to_cos", True),
        "freq_shift": config.get("freq_shift", 0),
        "sample_size": sample_size if isinstance(sample_size, int) else max(sample_size),
    }


def _form(keys: Iterable[str] | Mapping[str, np.ndarray]) -> Layout:
    """Linear where the projections of the source are; on the way back the file's own note of its form decides, this is the 1.x one."""
    return LINEAR if isinstance(keys, Mapping) and _PROJECTION in keys and keys[_PROJECTION].ndim == 2 else CONVOLUTIONS


UNET_DIFFUSERS = Public(
    _NAME,
    recognises=lambda keys: {_PROJECTION, "time_embedding.linear_1.weight", "conv_in.weight"} <= set(keys),
    layout=_form,
    model=_model,
    forms=(CONVOLUTIONS, LINEAR),
)
