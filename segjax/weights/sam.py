"""Names of SAM: the original files (sam_vit_{b,l,h}_*.pth and what was tuned from them) and Hugging Face's SamModel."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import sam_tables as tables
from segjax.weights.engine import Layout, Public, Rule

_MAKE = "segjax.nets.sam:Sam"
_GAUSSIAN = "batch_stats/prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"


def original_prompts() -> tuple[Rule, ...]:
    """The prompt encoder as the original files name it (MobileSAM's too)."""
    at = "prompt_encoder.mask_downscaling."
    return (
        Rule(_GAUSSIAN, "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        Rule("params/prompt_encoder/point_embeddings", "prompt_encoder.point_embeddings.{i}.weight", tables.ROW),
        Rule("params/prompt_encoder/(not_a_point_embed|no_mask_embed)", "prompt_encoder.{0}.weight"),
        *tables.mask_embedding((f"{at}0", f"{at}1", f"{at}3", f"{at}4", f"{at}6")),
    )


def original_decoder() -> tuple[Rule, ...]:
    """The mask decoder as the original files name it (MobileSAM's too)."""
    upscale = ("output_upscaling.0", "output_upscaling.1", "output_upscaling.3")
    return tables.decoder("norm{1}", "norm_final_attn", upscale, ("layers.0", "layers.1", "layers.2"), ("lin1", "lin2"))


ORIGINAL_NECK = {"conv1": "0", "layer_norm1": "1", "conv2": "2", "layer_norm2": "3"}
_BUFFERS = (r"pixel_(mean|std)",)
ORIGINAL = Layout(
    "sam",
    (
        *tables.vit("image_encoder", "blocks", {"patch_embed": "patch_embed.proj", "norm": "norm", **ORIGINAL_NECK}),
        *original_prompts(),
        *original_decoder(),
    ),
    _BUFFERS,
)


def _hf(name: str, gaussian: str, copies: tuple[str, ...] = ()) -> Layout:
    at, neck = "prompt_encoder.mask_embed.", {name: name for name in ORIGINAL_NECK}
    return Layout(
        name,
        (
            *tables.vit("vision_encoder", "layers", {"patch_embed": "patch_embed.projection", "norm": "layer_norm", **neck}),
            Rule(_GAUSSIAN, gaussian, copies=copies),
            Rule("params/prompt_encoder/point_embeddings", "prompt_encoder.point_embed.{i}.weight", tables.ROW),
            Rule("params/prompt_encoder/(not_a_point_embed|no_mask_embed)", "prompt_encoder.{0}.weight"),
            *tables.mask_embedding((f"{at}conv1", f"{at}layer_norm1", f"{at}conv2", f"{at}layer_norm2", f"{at}conv3")),
            *tables.decoder(
                "layer_norm{1}",
                "layer_norm_final_attn",
                ("upscale_conv1", "upscale_layer_norm", "upscale_conv2"),
                ("proj_in", "layers.0", "proj_out"),
                ("lin1", "lin2"),
            ),
        ),
    )


_SHARED, _OWN = "shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"
BOTH, SHARED, OWN = _hf("sam_hf", _SHARED, (_OWN,)), _hf("sam_hf_shared", _SHARED), _hf("sam_hf_own", _OWN)
"""The one matrix of the Fourier positions is tied: written under both names, or (safetensors keep one of tied tensors) under either."""


def _hf_form(keys: Iterable[str]) -> Layout:
    found = {_SHARED, _OWN} & set(keys)
    return {frozenset((_SHARED,)): SHARED, frozenset((_OWN,)): OWN}.get(frozenset(found), BOTH)


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    hidden = tables.size_of(source, "prompt_encoder.mask_downscaling.3.weight", 0, "sam")
    vit = tables.vit_fields(source, "image_encoder", "blocks", "patch_embed.proj", "sam")
    return {"make": _MAKE, **vit, "mask_channels": hidden, **tables.decoder_fields(source, "sam")}


def _hf_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the shapes; heads and epsilon of the decoder, and what must be as the network has it, from config.json."""
    vision, prompts, mask = (config.get(f"{part}_config") or {} for part in ("vision", "prompt_encoder", "mask_decoder"))
    vit = tables.vit_fields(source, "vision_encoder", "layers", "patch_embed.projection", "sam_hf")
    fields = tables.decoder_fields(source, "sam_hf", head="proj_in")
    stated = {"num_heads": vision.get("num_attention_heads"), "window": vision.get("window_size"), "image_size": vision.get("image_size")}
    for key, value in stated.items():
        if value is not None and value != vit[key] and not (key == "window" and not set(range(vit["depth"])) - set(vit["global_blocks"])):
            raise WeightsError(f"layout sam_hf: config.json has {key} = {value}, the tensors {vit[key]}: this config is another file's")
    acts = (vision.get("hidden_act", "gelu"), prompts.get("hidden_act", "gelu"), mask.get("hidden_act", "relu"))
    if acts != ("gelu", "gelu", "relu"):
        raise WeightsError(f"layout sam_hf: config.json has activations {acts}, expected gelu, gelu and relu, as in every SAM")
    return {
        "make": _MAKE,
        **vit,
        **fields,
        "mask_channels": tables.size_of(source, "prompt_encoder.mask_embed.conv2.weight", 0, "sam_hf"),
        "decoder_heads": mask.get("num_attention_heads", 8 if config else fields["decoder_heads"]),
        "decoder_epsilon": mask.get("layer_norm_eps", 1e-6),
    }


def _hf_config(network: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' SamModel reads. WeightsError: it has no such encoder or decoder."""
    features, grid = network["features"], network["image_size"] // network["patch"]
    if network["make"] != _MAKE or network["mask_channels"] % 4 or features % 2:
        raise WeightsError(f"layout sam_hf: transformers' SamModel is no {network['make']}: only a Sam with the ViT goes there")
    vision = {
        "hidden_size": network["embed_dim"],
        "output_channels": features,
        "num_hidden_layers": network["depth"],
        "num_attention_heads": network["num_heads"],
        "image_size": network["image_size"],
        "patch_size": network["patch"],
        "mlp_dim": network["mlp_dim"],
        "num_pos_feats": features // 2,
        "window_size": network["window"],
        "global_attn_indexes": list(network["global_blocks"]),
    }
    prompt = {
        "hidden_size": features,
        "image_size": network["image_size"],
        "patch_size": network["patch"],
        "image_embedding_size": grid,
        "mask_input_channels": network["mask_channels"],
    }
    mask = {
        "hidden_size": features,
        "num_hidden_layers": network["decoder_depth"],
        "num_attention_heads": network["decoder_heads"],
        "mlp_dim": network["decoder_mlp_dim"],
        "iou_head_hidden_dim": network["iou_hidden"],
        "num_multimask_outputs": network["num_masks"],
        "layer_norm_eps": network["decoder_epsilon"],
    }
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": mask}
    return {"architectures": ["SamModel"], "model_type": "sam", **parts}


SAM = Public(
    "sam",
    recognises=lambda keys: {"image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.iou_token.weight"} <= set(keys),
    layout=lambda keys: ORIGINAL,
    model=_model,
)
SAM_HF = Public(
    "sam_hf",
    recognises=lambda keys: {"vision_encoder.patch_embed.projection.weight", "mask_decoder.iou_token.weight"} <= set(keys),
    layout=_hf_form,
    model=_hf_model,
    config=_hf_config,
    forms=(BOTH, SHARED, OWN),
)
