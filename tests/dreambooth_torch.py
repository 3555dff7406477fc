"""One DreamBooth step in torch diffusers, from fixed draws: what `segjax.methods.dreambooth` must do too. Imported without torch."""

import json
import pathlib

import numpy as np

LR, CLIP = 1e-3, 1.0
ROWS = 2
PRIOR_WEIGHT = 0.7
CASES = {f"{prediction}{'_prior' * prior}": (prediction, prior) for prediction in ("epsilon", "v_prediction") for prior in (False, True)}
KEPT = (
    "unet.conv_in.weight",
    "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
    "unet.mid_block.resnets.0.time_emb_proj.bias",
    "unet.conv_norm_out.weight",
    "text.encoder.layers.0.self_attn.v_proj.weight",
    "text.final_layer_norm.bias",
)
"""Tensors of the stored golden, which is of the directory of `tiny_diffusion`."""


def images(count: int, phase: float, side: int) -> np.ndarray:
    """uint8 [count,side,side,3], each different."""
    y, x, n, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(count), np.arange(3), indexing="ij")
    waves = 70 * np.sin(0.1 * (n + 1) * x + phase + c) + 50 * np.cos(0.23 * y * (c + 1) - n) + 0.3 * ((7 * x * y) % 23)
    return np.clip(np.round(128 + waves), 0, 255).astype(np.uint8).transpose(2, 0, 1, 3)


def inputs(side: int) -> dict[str, np.ndarray]:
    """The one image and class images, each one crop, and the ids of both prompts: begin, a few tokens, end and padding."""
    ids = np.full((2, 77), 663, np.int32)
    ids[:, :7] = [[662, 320, 17, 405, 88, 512, 9], [662, 31, 44, 5, 600, 601, 663]]
    return {"instance": images(1, 0.0, side), "class": images(3, 1.0, side), "ids": ids}


def draws(latents: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Of the elements 0 .. ROWS - 1 of both streams, NHWC; latents: their side."""
    rng = np.random.default_rng(seed)
    shape = ROWS, latents, latents, 4
    found: dict[str, np.ndarray] = {}
    for stream in ("instance", "class"):
        found |= {f"{stream}_{kind}": rng.standard_normal(shape, np.float32) for kind in ("sample", "noise")}
        found[f"{stream}_times"] = rng.integers(0, 1000, ROWS).astype(np.int32)
    return found


def step(folder: pathlib.Path, prediction: str, prior: bool, drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """loss, loss_instance, loss_class, norm (of the gradient before clipping), and gradient/KEY, updated/KEY of every tensor."""
    import diffusers
    import torch
    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(folder / "text_encoder").train()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").train()
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("_class_name", "skip_prk_steps", "set_alpha_to_one")}
    schedule = diffusers.DDPMScheduler.from_config({**config, "prediction_type": prediction})
    side = drawn["instance_noise"].shape[1] * 2 ** (len(vae.config.block_out_channels) - 1)
    given = inputs(side)
    streams = ("instance", "class") if prior else ("instance",)
    pixels = np.concatenate([given[stream][np.arange(ROWS) % len(given[stream])] for stream in streams])
    pick = lambda kind: torch.from_numpy(np.concatenate([drawn[f"{stream}_{kind}"] for stream in streams]))
    sample, noise = (pick(kind).movedim(-1, 1) for kind in ("sample", "noise"))
    times = pick("times").long()
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1).latent_dist
        latents = vae.config.scaling_factor * (posterior.mean + posterior.std * sample)
    noisy = schedule.add_noise(latents, noise, times)
    target = noise if prediction == "epsilon" else schedule.get_velocity(latents, noise, times)
    ids = torch.from_numpy(given["ids"][: len(streams)]).repeat_interleave(ROWS, 0).long()
    output = unet(noisy, times, text(ids)[0]).sample
    parts = [torch.nn.functional.mse_loss(a, b) for a, b in zip(output.chunk(len(streams)), target.chunk(len(streams)), strict=True)]
    loss = parts[0] + (PRIOR_WEIGHT * parts[1] if prior else 0)
    loss.backward()
    named = {f"unet.{name}": value for name, value in unet.named_parameters()}
    named |= {f"text.{name.removeprefix('text_model.')}": value for name, value in text.named_parameters()}
    norm = torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP)
    gradients = {f"gradient/{name}": value.grad.numpy().copy() for name, value in named.items()}
    torch.optim.AdamW(list(named.values()), lr=LR, weight_decay=1e-2).step()
    updated = {f"updated/{name}": value.detach().numpy() for name, value in named.items()}
    numbers = {"loss": loss, "loss_instance": parts[0], "norm": norm} | ({"loss_class": PRIOR_WEIGHT * parts[1]} if prior else {})
    return {**{name: np.float32(value.item()) for name, value in numbers.items()}, **gradients, **updated}
