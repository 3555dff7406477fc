"""Names of diffusers' AutoencoderKL, Stable Diffusion's autoencoder.

Two forms of the attention in the middle: query, key, value, proj_attn (every published Stable Diffusion 1.x and 2.x) and to_q, to_k, to_v,
to_out.0 (what diffusers writes today). Everything but the widths can be read off shapes; config.json adds groups and scaling factor.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.diffusers_rules import Place, convolution, linear, norm, resnet, top
from segjax.weights.diffusers_unet import check_fixed
from segjax.weights.engine import DENSE, Layout, Public, Rule

_NAME = "vae_diffusers"
_HALF = "(encoder|decoder)"
_BLOCK = rf"params/{_HALF}/(down|up)_blocks_(\d+)"
_ATTENTION = Place(rf"params/{_HALF}/mid_block/attentions_0", "{0}.mid_block.attentions.0", 1)
_NOW = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out_0": "to_out.0"}
_THEN = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}


def _rules(names: Mapping[str, str]) -> tuple[Rule, ...]:
    return (
        *top(f"{_HALF}/", "{0}.", 1),
        *resnet(Place(rf"{_BLOCK}/resnet_(\d+)", "{0}.{1}_blocks.{2}.resnets.{3}", 4)),
        *resnet(Place(rf"{_BLOCK}/resnets_(\d+)/resnet", "{0}.{1}_blocks.{2}.resnets.{i}", 4, run=3)),
        *resnet(Place(rf"params/{_HALF}/mid_block/resnets_(\d)", "{0}.mid_block.resnets.{1}", 2)),
        *convolution(Place(rf"{_BLOCK}/(down|up)samplers_0/conv", "{0}.{1}_blocks.{2}.{3}samplers.0.conv", 4)),
        *norm(_ATTENTION.below("group_norm", "group_norm")),
        *(rule for ours, theirs in names.items() for rule in linear(_ATTENTION.below(f"attention/{ours}", theirs), DENSE)),
        *convolution(Place("params/(quant|post_quant)", "{0}_conv", 1)),
    )


PROJECTIONS = Layout(_NAME, _rules(_NOW))
QUERY_KEY_VALUE = Layout(f"{_NAME}_query_key_value", _rules(_THEN))

FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None, 0),
}


def _form(keys: Iterable[str]) -> Layout:
    return QUERY_KEY_VALUE if "decoder.mid_block.attentions.0.query.weight" in keys else PROJECTIONS


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    check_fixed(config, FIXED, _NAME)
    blocks = 1 + max((int(key.split(".")[2]) for key in source if key.startswith("encoder.down_blocks.")), default=-1)
    try:
        widths = tuple(int(source[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"].shape[0]) for n in range(blocks))
        latents = int(source["decoder.conv_in.weight"].shape[1])
        channels = int(source["encoder.conv_in.weight"].shape[1]), int(source["decoder.conv_out.weight"].shape[0])
    except (KeyError, IndexError):
        raise WeightsError(f"layout {_NAME}: no autoencoder (encoder.down_blocks, decoder): found {sorted(source)[:10]}") from None
    layers = len({key.split(".")[4] for key in source if key.startswith("encoder.down_blocks.0.resnets.")})
    for key, there in (("block_out_channels", widths), ("layers_per_block", layers), ("latent_channels", latents)):
        told = config.get(key, there)
        if (tuple(told) if isinstance(told, list) else told) != there:
            raise WeightsError(f"layout {_NAME}: config.json has {key}={told!r}, the weights have {there!r}: another model's config")
    sample_size = config.get("sample_size") or 512
    return {
        "make": "segjax.nets.vae:VAE",
        "widths": widths,
        "layers": layers,
        "latent_channels": latents,
        "in_channels": channels[0],
        "out_channels": channels[1],
        "groups": config.get("norm_num_groups", 32),
        "scaling_factor": config.get("scaling_factor", 0.18215),
        "mid_attention": any(".mid_block.attentions." in key for key in source),
        "quant_conv": "quant_conv.weight" in source,
        "post_quant_conv": "post_quant_conv.weight" in source,
        "sample_size": sample_size if isinstance(sample_size, int) else max(sample_size),
    }


VAE_DIFFUSERS = Public(
    _NAME,
    recognises=lambda keys: {"encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_norm_out.weight"} <= set(keys),
    layout=_form,
    model=_model,
    forms=(PROJECTIONS, QUERY_KEY_VALUE),
)
