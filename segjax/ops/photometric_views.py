"""The strong photometric views that consistency training learns from: chains of changes as DiGA and DAFormer draw them.

Float [B,H,W,3] RGB in 0..1 in and out. The rules are those of kornia 0.5.8, which both systems run.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError
from segjax.ops import photometric
from segjax.typing import Array, Key

DIGA = {
    "jitter": (0.4, 0.4, 0.2, 0.1),
    "jitter_probability": 0.5,
    "greyscale_probability": 0.3,
    "blur_probability": 0.8,
    "blur_sigma": (2.0, 2.0),
    "kernel_size": 3,
    "sharpness": 0.5,
    "sharpness_probability": 0.3,
}
"""DiGA's, for GTA5 (fy-vision/DiGA, train_DiGA_gta2city_warm_up.py)."""
DIGA_SYNTHIA = {**DIGA, "jitter_probability": 0.7, "greyscale_probability": 0.1}
DIGA_GENERALISATION = {**DIGA, "sharpness_probability": 0.0}
DAFORMER = {
    "jitter": (0.2, 0.2, 0.2, 0.2),
    "jitter_probability": 0.8,
    "blur_probability": 0.5,
    "blur_sigma": (0.15, 1.15),
    "together": True,
}
"""DAFormer's, HRDA's and MIC's, after mixing (mmseg/models/utils/dacs_transforms.py)."""
DACS = {**DAFORMER, "jitter": (0.25, 0.25, 0.25, 0.25)}
SSD = (32 / 255, 0.5, 0.5, 0.1)
"""Strengths of `ssd_view` in Mask2Former, fc-clip and CLOUDS (there 32, 0.5..1.5, 0.5..1.5 and 18 of 180)."""


def strong_view(
    key: Key,
    image: Array,
    *,
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
    jitter_probability: float = 1.0,
    greyscale_probability: float = 0.0,
    blur_probability: float = 0.0,
    blur_sigma: tuple[float, float] = (0.15, 1.15),
    kernel_size: int | tuple[int, int] | None = None,
    sharpness: float = 0.5,
    sharpness_probability: float = 0.0,
    together: bool = False,
) -> Array:
    """Colour jitter, greyscale, Gaussian blur, sharpness, in this order, each drawn for each image with its probability.

    `**DIGA`, `**DIGA_SYNTHIA`, `**DIGA_GENERALISATION`, `**DAFORMER` and `**DACS` are the systems' settings. What has probability 0 costs
    nothing. jitter: strengths of brightness, contrast, saturation and hue under `color_jitter`'s rule "kornia", in random order.
    kernel_size None: `dacs_kernel_size` of each side, but no more than 13 taps (what lies beyond weighs under 1e-6 for sigma <= 1.15).
    sharpness: a factor uniform in [0, sharpness] (`adjust_sharpness`: below 1 it smooths). together: whether the jitter and the blur happen
    is one draw for the batch; how strongly stays each image's own.
    """
    keys = jax.random.split(key, 4)
    if any(jitter) and jitter_probability > 0:
        strengths = dict(zip(("brightness", "contrast", "saturation", "hue"), jitter, strict=True))
        image = photometric.color_jitter(
            keys[0], image, **strengths, probability=jitter_probability, rule="kornia", order="random", together=together
        )
    if greyscale_probability > 0:
        image = _sometimes(keys[1], photometric.greyscale(image), image, greyscale_probability)
    if blur_probability > 0:
        if kernel_size is None:
            kernel_size = min(13, dacs_kernel_size(image.shape[1])), min(13, dacs_kernel_size(image.shape[2]))
        image = photometric.gaussian_blur(
            keys[2], image, sigma=blur_sigma, probability=blur_probability, kernel_size=kernel_size, together=together
        )
    if sharpness_probability > 0:
        factor_key, chosen_key = jax.random.split(keys[3])
        factor = jax.random.uniform(factor_key, (image.shape[0],), maxval=sharpness)
        image = _sometimes(chosen_key, adjust_sharpness(image, factor), image, sharpness_probability)
    return image


def ssd_view(key: Key, image: Array, strengths: tuple[float, float, float, float] = SSD, *, probability: float = 0.5) -> Array:
    """SSD's colour changes as Mask2Former, fc-clip and CLOUDS draw them: each happens to an image with `probability` by itself.

    strengths: brightness b, values shift by -b..b; contrast c, values times 1-c..1+c; saturation s, HSV's times 1-s..1+s; hue h, turned by
    -h..h of the circle. Brightness first, then saturation and hue, with contrast before the two or, by one more coin, after them. Source:
    `ColorAugSSDTransform` of facebookresearch/Mask2Former, which rounds to whole values after each change, and the hue to 2 degrees.
    """
    keys = jax.random.split(key, 3)
    count = image.shape[0]
    drawn = jax.random.uniform(keys[0], (4, count), minval=-1.0)
    happens = jax.random.bernoulli(keys[1], probability, (4, count))
    by = jnp.where(happens, drawn, 0.0) * jnp.asarray(strengths, jnp.float32)[:, None]
    each = lambda x: x[:, None, None, None]
    contrasted = lambda x, chosen: jnp.where(each(chosen), jnp.clip(x * each(1 + by[1]), 0, 1), x)
    first = jax.random.bernoulli(keys[2], 0.5, (count,))
    image = contrasted(photometric.shift_brightness(image, by[0]), first)
    image = photometric.adjust_hue(photometric.scale_saturation(image, 1 + by[2]), by[3])
    return contrasted(image, ~first)


def diga_view(key: Key, image: Array, *, share: float = 0.4, faithful: bool = False, **chain) -> Array:
    """DiGA's x_aug: `share` of the `strong_view` (settings `chain`, by default DIGA) over the image itself. [B,H,W,3] -> [B,H,W,3].

    share: beta, 0.4 in the warm-up and in domain generalisation, 0.3 in self-training.
    faithful: the released code hands normalised BGR values, about -0.96 to 1.18, to operations that clamp to 0..1, brings the result
    back by 2 v - 1 and mixes that. Dark pixels lose their contrast and the luma's weights meet the wrong channels; the result can leave
    0..1. Off, the chain works on the picture itself: the same strengths then change it less.
    """
    chain = chain or DIGA
    if not 0 <= share <= 1:
        raise ConfigError(f"share={share}: expected 0 (the image) to 1 (the changed one)")
    if not faithful:
        return blend_view(image, strong_view(key, image, **chain), share)
    mean = jnp.asarray((104.00698793, 116.66876762, 122.67891434), jnp.float32)
    normalised = (255 * image[..., ::-1] - mean) / 128
    view = blend_view(normalised, strong_view(key, normalised, **chain), share, centred=True)
    return (view * 128 + mean)[..., ::-1] / 255


def blend_view(image: Array, changed: Array, share: float, *, centred: bool = False) -> Array:
    """share * changed + (1 - share) * image; centred: changed lies in 0..1 and image in -1..1, so 2 changed - 1 takes its place."""
    return share * (2 * changed - 1 if centred else changed) + (1 - share) * image


def adjust_sharpness(image: Array, factor: Array | float) -> Array:
    """Away from (factor > 1) or towards (< 1) a 3x3 smoothed copy (weights 1, centre 5, over 13); the border pixels stay. [B,H,W,C].

    PIL's, torchvision's and kornia's. The copy is clamped to 0..1, and so is the result when it is sharpened.
    """
    batch, height, width, channels = image.shape
    flat = image.reshape(batch, height, width * channels)  # neighbours in a row are `channels` apart
    padded = jnp.pad(flat, ((0, 0), (1, 1), (channels, channels)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    total = rows[:, :, : -2 * channels] + rows[:, :, channels:-channels] + rows[:, :, 2 * channels :] + 4 * flat
    row, column = np.arange(height)[:, None], np.arange(width * channels) // channels
    inside = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
    smooth = jnp.where(inside, jnp.clip(total / 13, 0, 1), flat)
    factor = jnp.reshape(jnp.asarray(factor, image.dtype), (-1, 1, 1))
    out = smooth + factor * (flat - smooth)
    return jnp.where(factor > 1, jnp.clip(out, 0, 1), out).reshape(image.shape)


def dacs_kernel_size(side: int) -> int:
    """Taps of the blur in DACS and DAFormer for a picture of this side: about a tenth, odd."""
    tenth = math.ceil(0.1 * side)
    return math.floor(tenth - 0.5 + tenth % 2)


def _sometimes(key: Key, changed: Array, image: Array, probability: float) -> Array:
    return jnp.where(jax.random.bernoulli(key, probability, (image.shape[0], 1, 1, 1)), changed, image)
