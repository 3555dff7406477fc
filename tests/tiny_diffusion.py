"""A Stable Diffusion directory of a few thousand random numbers: it compiles in seconds, and every part of it matters to the image."""

import json
import pathlib

import numpy as np

from segjax.generation import directory
from segjax.nets.clip import TextTransformer
from segjax.nets.unet import UNet
from segjax.nets.vae import VAE
from segjax.weights import clip_hf, safetensors_io
from segjax.weights.diffusers_unet import LINEAR
from segjax.weights.diffusers_vae import QUERY_KEY_VALUE

SCHEDULER = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 664,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "eos_token_id": 2,
    "hidden_act": "gelu",
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
    "sample_size": 4,
    "use_linear_projection": True,
}
VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 8,
}


def write(folder: pathlib.Path, goldens: pathlib.Path, seed: int = 0, *, up_attention: bool = True) -> pathlib.Path:
    """Writes the directory, with the tokenizer of the goldens. up_attention: whether the UNet reads the text on its way up too."""
    text = TextTransformer(vocab_size=664, width=8, layers=1, heads=2, mlp_width=16, activation="gelu")
    sizes = dict(layers=(1,), transformers=(1,), down_attention=(False,), up_attention=(up_attention,))
    unet = UNet(widths=(8,), heads=(2,), context_features=8, groups=4, sample_size=4, **sizes)
    vae = VAE(widths=(4, 8), layers=1, groups=2, sample_size=8)
    parts = {
        "text": _part(text, TEXT, clip_hf.TEXT, seed),
        "unet": _part(unet, UNET if up_attention else {**UNET, "up_block_types": ["UpBlock2D"]}, LINEAR, seed + 1),
        "vae": _part(vae, VAE_CONFIG, QUERY_KEY_VALUE, seed + 2),
    }
    index = json.loads((goldens / "stable_diffusion" / directory.INDEX).read_text())
    tokenizer = goldens / "stable_diffusion" / "tokenizer"
    directory.write(folder, directory.StableDiffusion(**parts, scheduler=SCHEDULER, index=index, tokenizer=tokenizer))
    return folder


def _part(module, config, form, seed) -> directory.Part:
    rng = np.random.default_rng(seed)
    like = directory._shapes(module)  # kept there, for the reader too
    drawn = {path: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32) for path, leaf in like.items()}
    drawn = {path: 1 + value if path.endswith("scale") else value for path, value in drawn.items()}
    return directory.Part(module, safetensors_io.unflatten(drawn), config, form, {}, pathlib.Path())
