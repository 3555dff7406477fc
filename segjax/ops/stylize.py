"""Source images in the look of target images, as methods draw it: which of them, by how wide a window."""

import jax
import jax.numpy as jnp

from segjax.ops.fourier import Variant, amplitude_transfer, amplitude_transfer_bands
from segjax.typing import Array, Key


def in_the_look_of(
    key: Key, source: Array, target: Array, betas: tuple[float, ...], *, variant: Variant = "centred", share: float = 1.0
) -> Array:
    """Float source images [B,H,W,3] with the low-frequency amplitudes of target images [N,H,W,3] (`ops.fourier`), N any number.

    betas: window sizes as a share of the shorter side; with several, each image draws one; with none the source stays as it is.
    share: how many images are stylized, drawn for each.
    """
    if not betas:
        return source
    if target.shape[0] != source.shape[0]:  # not always: taking rows out of a sharded batch moves it between devices
        target = target[jnp.arange(source.shape[0]) % target.shape[0]]
    band_key, share_key = jax.random.split(key)
    if len(betas) == 1:
        stylized = amplitude_transfer(source, target, betas[0], variant=variant)
    else:
        stylized = amplitude_transfer_bands(source, target, betas, band_key, variant=variant)
    if share >= 1:
        return stylized
    chosen = jax.random.bernoulli(share_key, share, (source.shape[0], 1, 1, 1))
    return jnp.where(chosen, stylized, source)
