"""The yardstick of the workload `clip_encoder`: Hugging Face's CLIPVisionModel, with torch's own attention."""

import forward_torch

VARIANTS = ("eager",)


def prepare(sizes, sets, variant, device):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
    )
    config._attn_implementation = "sdpa"
    return forward_torch.prepare(
        CLIPVisionModel(config),
        sizes,
        sets,
        variant,
        device,
        arguments=lambda image: {"pixel_values": image},
        answer=lambda found: found.pooler_output,
        images=("image",),
    )
