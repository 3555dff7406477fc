"""Photometric changes on the device: float [B,H,W,3] RGB in 0..1, every random number drawn for each image.

The formulas are torchvision's (transforms/v2/functional/_color.py and _misc.py), with BT.601's luma, and where a name begins with shift_
or scale_ kornia's (enhance/adjust.py of 0.5.8). All of them take a number for each image, [B] or a scalar.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array, Key

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which PIL and kornia have too; torchvision's tensor code writes 0.2989, and white loses 1e-4


def _per_image(factor: Array | float) -> Array:
    return jnp.reshape(jnp.asarray(factor, jnp.float32), (-1, 1, 1, 1))


def _blend(image: Array, other: Array | float, factor: Array | float) -> Array:
    factor = _per_image(factor).astype(image.dtype)
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


def _extremes(image: Array) -> list[Array]:
    """Red, green, blue, the largest and the smallest of them, [B,H,W,1] each."""
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    # not jnp.max(axis=-1): a CPU makes no vector code of a reduction over three neighbours
    return [red, green, blue, jnp.maximum(jnp.maximum(red, green), blue), jnp.minimum(jnp.minimum(red, green), blue)]


def greyscale(image: Array) -> Array:
    """Luma 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601; PIL's mode "L" but for its rounding) in all three channels, [B,H,W,3] -> same."""
    red, green, blue = (image[..., i : i + 1] * weight for i, weight in enumerate(_LUMA))
    return jnp.broadcast_to(red + green + blue, image.shape)


def adjust_brightness(image: Array, factor: Array | float) -> Array:
    """factor * image, clamped to 0..1. 1 changes nothing, 0 is black."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image: Array, factor: Array | float) -> Array:
    """Away from (factor > 1) or towards (< 1) the image's mean luma, clamped to 0..1."""
    return _blend(image, jnp.mean(greyscale(image)[..., :1], axis=(1, 2, 3), keepdims=True), factor)


def adjust_saturation(image: Array, factor: Array | float) -> Array:
    """Away from or towards each pixel's luma, clamped to 0..1. 0 is grey."""
    return _blend(image, greyscale(image), factor)


def adjust_hue(image: Array, shift: Array | float) -> Array:
    """Turn the hue (HSV) by `shift` of the circle, -0.5..0.5; value and HSV saturation stay."""
    red, green, blue, high, low = _extremes(image)
    spread = high - low
    safe = jnp.where(spread > 0, spread, 1)
    sixth = jnp.where(high == red, (green - blue) / safe, jnp.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    # each channel of the turned hue is one shifted triangle wave: no six-way selection
    position = jnp.asarray([5.0, 3.0, 1.0], image.dtype) + sixth + 6 * _per_image(shift).astype(image.dtype)
    k = position - 6 * jnp.floor(position / 6)  # jnp.mod takes ten times as long on a CPU
    return high - spread * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def shift_brightness(image: Array, shift: Array | float) -> Array:
    """image + shift, clamped to 0..1."""
    return jnp.clip(image + _per_image(shift).astype(image.dtype), 0, 1)


def scale_saturation(image: Array, factor: Array | float) -> Array:
    """HSV's saturation times factor, held at 1; hue and value stay. Values outside 0..1 are passed on as kornia passes them."""
    *_, high, low = _extremes(image)
    spread = high - low
    fullest = high / jnp.where(spread > 0, spread, 1)  # the factor at which the saturation is 1
    return high - (high - image) * jnp.minimum(_per_image(factor).astype(image.dtype), jnp.maximum(fullest, 0))


def color_jitter(
    key: Key,
    image: Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    probability: float = 1.0,
    rule: Literal["torchvision", "kornia"] = "torchvision",
    order: Literal["fixed", "random"] = "fixed",
    together: bool = False,
) -> Array:
    """Random brightness, contrast, saturation and hue of each image, applied to it with `probability`. [B,H,W,3] -> [B,H,W,3].

    brightness, contrast, saturation s: a factor uniform in [max(0, 1-s), 1+s]; hue h in 0..0.5: a shift uniform in [-h, h].
    A strength of 0 costs nothing. Each operation clamps to 0..1. Raises ConfigError for a strength out of range.
    rule "kornia" (0.5.8, as DiGA, DAFormer, HRDA and MIC run it): brightness is a shift by factor - 1 (at most 1), contrast a factor on the
    values themselves, saturation a factor on HSV's. order "fixed": as listed, a deliberate difference from both libraries' ColorJitter,
    which draw the order for each call: "random". together: all images change, or none (one draw a batch, as DACS and DAFormer).
    """
    _check_images(image)
    _check_probability(probability)
    strengths, bounds = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}, []
    for name, strength in strengths.items():
        if strength < 0 or (name == "hue" and strength > 0.5):
            raise ConfigError(f"{name}={strength}: expected at least 0{' and at most 0.5' if name == 'hue' else ''}")
        low, high = (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
        bounds.append((low, min(high, 2.0) if (name, rule) == ("brightness", "kornia") else high))
    if rule not in _JITTER or order not in ("fixed", "random"):
        raise ConfigError(f"rule={rule!r}, order={order!r}: expected rule 'torchvision' or 'kornia', order 'fixed' or 'random'")
    keys = _keys(key, 6)
    uniform = lambda key, low, high: jax.random.uniform(key, image.shape[:1], minval=low, maxval=high)
    drawn = jax.vmap(uniform)(keys[:4], *np.asarray(bounds, np.float32).T)
    each = zip(_JITTER[rule], drawn, strengths.values(), strict=True)
    changes = [lambda image, change=change, by=by: change(image, by) for change, by, strength in each if strength > 0]
    out = _in_turn(changes, image, None if order == "fixed" else keys[5])
    return _sometimes(keys[4], out, image, probability, together)


def _keys(key: Key, count: int) -> Key:
    """Keys folded with 0, 1, ..., all in one draw: each draw by itself is a loop in the program."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


_JITTER = {
    "torchvision": (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue),
    "kornia": (
        lambda image, factor: shift_brightness(image, factor - 1),
        lambda image, factor: jnp.clip(_per_image(factor).astype(image.dtype) * image, 0, 1),
        scale_saturation,
        adjust_hue,
    ),
}


def _in_turn(changes: list, image: Array, order: Key | None) -> Array:
    """All changes one after the other, in their own order or in a random one."""
    if order is None or len(changes) < 2:
        for change in changes:
            image = change(image)
        return image
    places = jax.random.permutation(order, len(changes))
    return lax.fori_loop(0, len(changes), lambda i, image: lax.switch(places[i], changes, image), image)


def gaussian_blur(
    key: Key,
    image: Array,
    *,
    sigma: tuple[float, float] = (0.1, 2.0),
    probability: float = 1.0,
    kernel_size: int | tuple[int, int] = 9,
    together: bool = False,
) -> Array:
    """Gaussian blur of each image with its own sigma (pixels, uniform in `sigma`), applied with `probability`. [B,H,W,C], any range.

    kernel_size: odd number of taps, on both axes or (down, across); the taps are normalised to sum 1; edges are reflected (the edge
    pixel not repeated).
    DACS and DAFormer draw sigma from (0.15, 1.15), where 9 taps hold all but 1e-4 of the weight (they use a tenth of the side).
    together: all images are blurred, or none.
    Raises ConfigError for an even kernel_size, one that reaches across the image, or a wrong sigma.
    """
    _check_probability(probability)
    if any(taps < 1 or taps % 2 == 0 or taps // 2 >= side for taps, side in zip(_pair(kernel_size), image.shape[1:3], strict=True)):
        raise ConfigError(f"kernel_size={kernel_size} on {image.shape[1]}x{image.shape[2]} images: expected odd, below twice the side")
    low, high = sigma
    if not 0 < low <= high:
        raise ConfigError(f"sigma={sigma}: expected (low, high) with 0 < low <= high, in pixels")
    sigma_key, chosen_key = _keys(key, 2)
    drawn = jax.random.uniform(sigma_key, (image.shape[0],), minval=low, maxval=high)
    return _sometimes(chosen_key, blur(image, drawn, kernel_size), image, probability, together)


def blur(image: Array, sigma: Array, kernel_size: int | tuple[int, int]) -> Array:
    """Gaussian blur with the given sigma [B] (pixels), separable, reflected edges. [B,H,W,C] -> [B,H,W,C]."""
    for axis, length in zip((1, 2), _pair(kernel_size), strict=True):
        reach, size = length // 2, image.shape[axis]
        taps = jnp.exp(-0.5 * (jnp.arange(reach + 1) / jnp.reshape(sigma, (-1, 1))) ** 2)
        taps = (taps / (taps[:, :1] + 2 * jnp.sum(taps[:, 1:], axis=1, keepdims=True))).astype(image.dtype)
        pad = [(reach, reach) if i == axis else (0, 0) for i in range(4)]
        # kept from fusing: each tap would find out anew which pixel its border mirrors
        padded = lax.optimization_barrier(jnp.pad(image, pad, mode="reflect"))
        # shifted multiply-adds, which XLA fuses into one pass; a depthwise convolution with a kernel an image is far slower on CPU
        image = _per_image(taps[:, 0]).astype(image.dtype) * image
        for k in range(1, reach + 1):
            pair = lax.slice_in_dim(padded, reach - k, reach - k + size, axis=axis)
            pair = pair + lax.slice_in_dim(padded, reach + k, reach + k + size, axis=axis)
            image = image + _per_image(taps[:, k]).astype(image.dtype) * pair
    return image


def _pair(kernel_size: int | tuple[int, int]) -> tuple[int, int]:
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size


def _check_images(image: Array) -> None:
    if image.ndim != 4 or image.shape[-1] != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ConfigError(f"image is {image.dtype}{list(image.shape)}: expected float [B,H,W,3] in 0..1")


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability={probability}: expected 0..1")


def _sometimes(key: Key, changed: Array, image: Array, probability: float, together: bool = False) -> Array:
    chosen = jax.random.bernoulli(key, probability, (1 if together else image.shape[0], 1, 1, 1))
    return jnp.where(chosen, changed, image)
