"""Names of EfficientSAM's files (efficient_sam_vitt.pt, efficient_sam_vits.pt, under the key "model")."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import sam, sam_tables
from segjax.weights.engine import Layout, Public, Rule

_BLOCK, _THERE = "image_encoder/blocks", "image_encoder.blocks.{i}"
LAYOUT = Layout(
    "efficient_sam",
    (
        Rule("params/image_encoder/pos_embed", "image_encoder.pos_embed"),
        *sam_tables.conv("image_encoder/patch_embed", "image_encoder.patch_embed.proj"),
        *sam_tables.norm(f"{_BLOCK}/norm(\\d)", f"{_THERE}.norm{{0}}"),
        *sam_tables.dense(f"{_BLOCK}/attn/(qkv|proj)", f"{_THERE}.attn.{{0}}"),
        *sam_tables.dense(f"{_BLOCK}/mlp/lin(\\d)", f"{_THERE}.mlp.fc{{0}}"),
        *sam_tables.neck("image_encoder", sam.ORIGINAL_NECK),
        sam.original_prompts()[0],
        Rule(r"params/prompt_encoder/(invalid_points|point_embeddings|bbox_\w+_embeddings)", "prompt_encoder.{0}.weight"),
        *sam_tables.decoder(
            "norm{1}",
            "norm_final_attn",
            ("final_output_upscaling_layers.0.0", "final_output_upscaling_layers.0.1", "final_output_upscaling_layers.1.0"),
            ("layers.0.0", "layers.1.0", "fc"),
            ("layers.0.0", "fc"),
        ),
    ),
    (r"pixel_(mean|std)",),
)


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes from the shapes; the frame is 1024 and heads have 64 channels, as published (other widths: --set num_heads)."""
    size = lambda key, axis: sam_tables.size_of(source, key, axis, "efficient_sam")
    positions, width = (size("image_encoder.pos_embed", axis) for axis in (1, 2))
    grid = round((positions - 1) ** 0.5)
    if grid**2 + 1 != positions:
        raise WeightsError(f"layout efficient_sam: {positions} positions in image_encoder.pos_embed: expected a square and one, as 197")
    return {
        "make": "segjax.nets.efficient_sam:EfficientSam",
        "patch": size("image_encoder.patch_embed.proj.weight", 3),
        "embed_dim": width,
        "depth": sam_tables.count(source, r"image_encoder\.blocks\.(\d+)\."),
        "num_heads": 0 if width % 64 else width // 64,
        "mlp_dim": size("image_encoder.blocks.0.mlp.fc1.weight", 0),
        "pos_grid": grid,
        **sam_tables.decoder_fields(source, "efficient_sam", head="layers.0.0", lin1="layers.0.0"),
    }


EFFICIENT_SAM = Public(
    "efficient_sam",
    recognises=lambda keys: "prompt_encoder.invalid_points.weight" in keys,
    layout=lambda keys: LAYOUT,
    model=_model,
)
