"""The yardstick of the workload `unet`: diffusers' UNet2DConditionModel, with torch's own attention."""

import forward_torch


def prepare(sizes, sets, variant, device):
    from diffusers import UNet2DConditionModel

    count = len(sizes["widths"])
    down, up = ["CrossAttnDownBlock2D"] * count, ["CrossAttnUpBlock2D"] * count
    if count == 4:  # Stable Diffusion's
        down[-1], up[0] = "DownBlock2D", "UpBlock2D"
    module = UNet2DConditionModel(
        sample_size=sizes["side"],
        block_out_channels=tuple(sizes["widths"]),
        layers_per_block=2,
        attention_head_dim=sizes["heads"],
        cross_attention_dim=sizes["context"],
        down_block_types=tuple(down),
        up_block_types=tuple(up),
    )
    return forward_torch.prepare(
        module,
        sizes,
        sets,
        variant,
        device,
        arguments=lambda latents, text: {"sample": latents, "encoder_hidden_states": text, "timestep": sizes["timestep"]},
        answer=lambda found: found.sample.permute(0, 2, 3, 1),
        images=("latents",),
    )
