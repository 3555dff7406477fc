"""The yardstick of the workload `sam_encoder`: Hugging Face's SamVisionEncoder, with torch's own attention."""

import forward_torch
import torch

VARIANTS = ("eager",)


def prepare(sizes, sets, variant, device):
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    config = SamVisionConfig(
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        mlp_dim=sizes["mlp_dim"],
        image_size=sizes["image_size"],
        global_attn_indexes=list(sizes["global_blocks"]),
        window_size=sizes["window"],
    )
    config._attn_implementation = "sdpa"
    module = SamVisionEncoder(config)
    for name, parameter in module.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # transformers starts them at zero
            torch.nn.init.normal_(parameter, std=0.02)
    return forward_torch.prepare(
        module,
        sizes,
        sets,
        variant,
        device,
        arguments=lambda image: {"pixel_values": image},
        answer=lambda found: (found[0] if isinstance(found, tuple) else found.last_hidden_state).permute(0, 2, 3, 1),
        prefix="vision_encoder.",
        images=("image",),
    )
