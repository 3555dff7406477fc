"""The yardsticks of `scripts/bench_foundation.py`: Hugging Face's networks in torch, eager, in a process of their own.

`python foundation_torch.py WORKLOAD SIZES_AS_JSON FOLDER` makes the network with random weights, writes its tensors (weights.safetensors,
config.json), the inputs and its outputs (arrays.npz) into the folder and prints "ready"; then every line on stdin runs a pass and is
answered with its milliseconds of wall and of processor time (all threads), a JSON list. A workload is a function sizes -> (module, shapes
of its inputs by keyword, outputs -> the one that is compared).
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from safetensors.torch import save_file


def sam_encoder(sizes: dict):
    """SamVisionEncoder; its keys get the prefix that they have in a SamModel."""
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionModel

    config = SamVisionConfig(
        hidden_size=sizes["embed_dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["num_heads"],
        mlp_dim=sizes["mlp_dim"],
        image_size=sizes["image_size"],
        global_attn_indexes=list(sizes["global_blocks"]),
        window_size=sizes["window"],
        initializer_range=0.02,
    )
    module = SamVisionModel(config)
    for name, parameter in module.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # transformers starts them at zero
            torch.nn.init.normal_(parameter, std=0.02)
    return module, {"pixel_values": (sizes["batch"], 3, sizes["image_size"], sizes["image_size"])}, lambda out: out.last_hidden_state


def clip_vision(sizes: dict):
    """CLIPVisionModel."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
    )
    return CLIPVisionModel(config), {"pixel_values": (sizes["batch"], 3, *[sizes["image_size"]] * 2)}, lambda out: out.pooler_output


class Denoiser(torch.nn.Module):
    """UNet2DConditionModel of Stable Diffusion 1.5's first levels at one time step."""

    def __init__(self, sizes: dict):
        super().__init__()
        from diffusers import UNet2DConditionModel

        count = len(sizes["widths"])
        self.unet = UNet2DConditionModel(
            sample_size=sizes["side"],
            block_out_channels=sizes["widths"],
            layers_per_block=2,
            attention_head_dim=sizes["heads"],
            cross_attention_dim=sizes["context"],
            down_block_types=("CrossAttnDownBlock2D",) * count,
            up_block_types=("CrossAttnUpBlock2D",) * count,
        )
        self.config, self.timestep = self.unet.config, sizes["timestep"]

    def forward(self, **inputs):
        return self.unet(timestep=self.timestep, **inputs)

    def state_dict(self, *args, **kwargs):
        return self.unet.state_dict(*args, **kwargs)


def unet(sizes: dict):
    """Two levels of SD 1.5's UNet with their transformers, and the middle."""
    shapes = {
        "sample": (sizes["batch"], 4, *[sizes["side"]] * 2),
        "encoder_hidden_states": (sizes["batch"], sizes["tokens"], sizes["context"]),
    }
    return Denoiser(sizes), shapes, lambda out: out.sample


class Gradients(torch.nn.Module):
    """Forward and backward of a module from the sum of the cubes of its outputs (that of the squares is all but constant after a norm).

    Gives the gradient of its input, channels last and flat, over its largest, and at the end the norm n of all parameters' gradients as
    n / (1 + n).
    """

    def __init__(self, module, outputs):
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(self, **inputs):
        (name, x), *_ = inputs.items()
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            self.module.zero_grad()
            sum((y**3).sum() for y in self.outputs(self.module, name, x)).backward()
        dx = x.grad.permute(0, 2, 3, 1) if x.ndim == 4 else x.grad
        norm = torch.sqrt(sum(p.grad.square().sum() for p in self.module.parameters() if p.grad is not None))
        return torch.cat([dx.flatten() / dx.abs().max(), (norm / (1 + norm))[None]])

    def state_dict(self, *args, **kwargs):
        return self.module.state_dict(*args, **kwargs)


def mit(sizes: dict):
    """SegformerModel, every stage."""
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(hidden_sizes=sizes["dims"], depths=sizes["depths"], drop_path_rate=0.0)
    stages = lambda module, name, x: module(**{name: x}, output_hidden_states=True).hidden_states
    shape = (sizes["batch"], 3, sizes["height"], sizes["width"])
    return Gradients(SegformerModel(config).eval(), stages), {"pixel_values": shape}, lambda out: out


def mit_block(sizes: dict):
    """The first block of SegformerModel's first stage."""
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(hidden_sizes=[sizes["dim"], 64, 160, 256], drop_path_rate=0.0)
    block = SegformerModel(config).eval().stages[0].blocks[0]

    def outputs(module, name, x):
        y = module(x, sizes["height"], sizes["width"])
        return [y[0] if isinstance(y, tuple) else y]

    shape = (sizes["batch"], sizes["height"] * sizes["width"], sizes["dim"])
    return Gradients(block, outputs), {"hidden_states": shape}, lambda out: out


WORKLOADS = {
    "clip_vit_b16": clip_vision,
    "sd15_unet_levels": unet,
    "sam_vit_b": sam_encoder,
    "mit_b0_gradients": mit,
    "mit_b0_block_gradients": mit_block,
}


def main():
    name, sizes, folder = sys.argv[1], json.loads(sys.argv[2]), pathlib.Path(sys.argv[3])
    torch.manual_seed(0)
    module, shapes, chosen = WORKLOADS[name](sizes)
    module.eval()
    inputs = {key: torch.randn(shape) for key, shape in shapes.items()}
    with torch.no_grad():
        output = chosen(module(**inputs))
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "weights.safetensors")
        if hasattr(module, "config"):
            config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
            (folder / "config.json").write_text(json.dumps(config, default=str))
        np.savez(folder / "arrays.npz", out=output.numpy(), **{key: value.numpy() for key, value in inputs.items()})
        print("ready", flush=True)
        for _ in sys.stdin:
            begun, spent = time.perf_counter(), time.process_time()
            module(**inputs)
            wall, processor = time.perf_counter() - begun, time.process_time() - spent
            print(json.dumps([wall * 1e3, processor * 1e3]), flush=True)


if __name__ == "__main__":
    main()
