"""Spectral stylization: give an image the low-frequency amplitudes of another and keep its phases (FDA, CVPR 2020).

Both forms compute `source + Re IDFT(weight * change)`, where the change is zero outside a small window of frequencies:
"fft" goes through `jnp.fft`, "banded" multiplies by the window's rows of the DFT matrix alone. Everything lives in one half plane,
rows u = 0..b and columns v = 0..b, -b..-1, which suffices because images are real: S(-u, -v) is the conjugate of S(u, v).
"""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.typing import Array, Key

Variant = Literal["centred", "corner"]
Form = Literal["auto", "fft", "banded"]

BANDED_UP_TO = {"cpu": 0.2, "cuda": 0.06, "default": 0.2}
"""Largest b / min(height, width) at which the banded form is the faster one, by platform: measured by the workload `fda` of `segjax bench`
on a 2-core CPU and an H200; the default (TPU) is an estimate."""


def _no_phase(pixels: int) -> float:
    """Below this share of the window's largest coefficient there is rounding noise only, hence no phase (measured on flat images)."""
    return float(np.finfo(np.float32).eps) * max(0.5, pixels / 2**20)


def band(height: int, width: int, beta: float) -> int:
    """Half size b of the frequency window: floor(min(height, width) * beta), in float64 as the authors' code computes it.

    beta in [0, 0.5]. Raises ConfigError outside. Source: FDA_source_to_target_np in YanchaoYang/FDA utils/__init__.py.
    """
    if not 0.0 <= beta <= 0.5:
        raise ConfigError(f"beta={beta}: the share of frequencies must lie in 0..0.5 (the paper uses 0.01, 0.05 and 0.09)")
    return math.floor(min(height, width) * float(beta))


def amplitude_transfer(source: Array, target: Array, beta: float, *, variant: Variant = "centred", form: Form = "auto") -> Array:
    """Source images with the target's low-frequency amplitudes and their own phases.

    source, target: float [B,H,W,C] of equal shape, any range; computed in float32 (float64 stays), returned in source's dtype.
    Values may leave the range: nothing is clipped.
    variant "centred": frequencies -b..b on both axes (authors' numpy function; b = 0 swaps the mean alone).
    variant "corner": frequencies -b..b-1 (their torch function, used in training; b = 0 changes nothing). That window is not
    Hermitian; the real part that their code takes at the end equals weighting k by half of [k in window] + [-k in window].
    form "auto": the faster of "banded" and "fft" for this window on the platform that runs it. Both are equal to float tolerance.
    Where the source's coefficient is zero its phase is zero, as numpy's angle has it; here also where it is float32 rounding noise.
    Gradients are finite everywhere. Raises ConfigError for unequal shapes, integer images, a wrong beta or a wrong name.
    """
    _check(source, target, variant, form)
    height, width = source.shape[1:3]
    b = band(height, width, beta)
    if variant == "corner" and b == 0:
        return source
    return _transfer(source, target, jnp.asarray(_weight(height, width, b, b, variant)[None]), b, form)


def amplitude_transfer_bands(
    source: Array, target: Array, betas: tuple[float, ...], key: Key, *, variant: Variant = "centred", form: Form = "auto"
) -> Array:
    """`amplitude_transfer` with a beta drawn for each image, uniformly from `betas` (static); one compiled graph for all of them.

    Costs what the largest beta costs. Deliberate difference from the paper, which trains one network a beta: a set of betas in one
    run is an augmentation.
    """
    _check(source, target, variant, form)
    if not betas:
        raise ConfigError("betas=(): name at least one share of frequencies, for example (0.01, 0.05, 0.09)")
    height, width = source.shape[1:3]
    bands = [band(height, width, beta) for beta in betas]
    largest = max(bands)
    table = np.stack([_weight(height, width, b, largest, variant) for b in bands])
    choice = jax.random.randint(key, (source.shape[0],), 0, len(betas))
    return _transfer(source, target, jnp.asarray(table)[choice], largest, form)


def _check(source: Array, target: Array, variant: str, form: str) -> None:
    if source.shape != target.shape or source.ndim != 4:
        raise ConfigError(f"source {source.shape} and target {target.shape} must be equal [B,H,W,C]: resize or crop the target first")
    if not (jnp.issubdtype(source.dtype, jnp.floating) and jnp.issubdtype(target.dtype, jnp.floating)):
        raise ConfigError(f"images are {source.dtype} and {target.dtype}, expected float: convert with .astype('float32') first")
    if variant not in ("centred", "corner"):
        raise ConfigError(f"variant={variant!r}: expected 'centred' or 'corner'")
    if form not in ("auto", "fft", "banded"):
        raise ConfigError(f"form={form!r}: expected 'auto', 'fft' or 'banded'")


def _columns(width: int, b: int) -> np.ndarray:
    """Column frequencies in FFT order, 0..b then -b..-1; at the Nyquist frequency b and -b are one and the same."""
    return np.concatenate([np.arange(min(b, (width - 1) // 2) + 1), np.arange(-b, 0)])


def _weight(height: int, width: int, b: int, largest: int, variant: str) -> np.ndarray:
    """Share of the change that coefficient (u, v) takes, float32 [largest+1, columns]: 0, 1/2 or 1."""
    top = b if variant == "centred" else b - 1

    def inside(k: np.ndarray, size: int) -> np.ndarray:
        signed = (k + size // 2) % size - size // 2
        return (signed >= -b) & (signed <= top)

    u, v = np.arange(largest + 1)[:, None], _columns(width, largest)[None]
    both = (inside(u, height) & inside(v, width)).astype(np.float32) + (inside(-u, height) & inside(-v, width))
    return (both / 2).astype(np.float32)


def _transfer(source: Array, target: Array, weight: Array, b: int, form: str) -> Array:
    dtype = jnp.promote_types(source.dtype, jnp.float32)
    s, t = source.astype(dtype), target.astype(dtype)
    weight = weight.astype(dtype)
    fft, banded = partial(_fft, b=b), partial(_banded, b=b)
    if form == "auto":
        share = b / min(source.shape[1:3])
        choices = {name: banded if share <= limit else fft for name, limit in BANDED_UP_TO.items()}
        same = len(set(choices.values())) == 1
        out = choices["cpu"](s, t, weight) if same else lax.platform_dependent(s, t, weight, **choices)
    else:
        out = (banded if form == "banded" else fft)(s, t, weight)
    return out.astype(source.dtype)


def _change(sr: Array, si: Array, tr: Array, ti: Array, *, pixels: int) -> tuple[Array, Array]:
    """(|T| / |S| - 1) S, without a division by zero or the root's infinite slope at zero; |T| - S where S has no phase."""
    s2, t2 = sr * sr + si * si, tr * tr + ti * ti
    largest = lax.stop_gradient(jnp.max(s2, axis=(1, 2), keepdims=True))
    has_phase = s2 > largest * _no_phase(pixels) ** 2
    amplitude = jnp.where(t2 > 0, jnp.sqrt(jnp.where(t2 > 0, t2, 1)), 0)
    gain = jnp.where(has_phase, amplitude * lax.rsqrt(jnp.where(has_phase, s2, 1)), 0) - 1
    return gain * sr + jnp.where(has_phase, 0, amplitude), gain * si


def _fft(source: Array, target: Array, weight: Array, *, b: int) -> Array:
    _, height, width, _ = source.shape
    right = len(_columns(width, b)) - b

    def window(image: Array) -> tuple[Array, Array]:
        spectrum = jnp.fft.rfftn(image, axes=(2, 1))[:, : b + 1]
        low = jnp.concatenate([spectrum[:, :, :right], spectrum[:, :, width - b :]], axis=2)
        return low.real, low.imag

    real, imag = _change(*window(source), *window(target), pixels=height * width)
    change = lax.complex(real, imag) * weight[..., None]
    rows = ((0, 0), (0, height // 2 - b), (0, 0), (0, 0))
    middle = jnp.zeros((*change.shape[:2], width - change.shape[2], change.shape[3]), change.dtype)
    full = jnp.pad(jnp.concatenate([change[:, :, :right], middle, change[:, :, right:]], axis=2), rows)
    return source + jnp.fft.irfftn(full, s=(width, height), axes=(2, 1))


def _basis(frequencies: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi k n / size, float64 [K,size]. The angle is reduced in integers, or large k n would lose digits."""
    angle = 2 * np.pi * (np.outer(frequencies, np.arange(size)) % size) / size
    return np.cos(angle), np.sin(angle)


def _matmul(basis: np.ndarray, x: Array) -> Array:
    """basis [M,N] times each [N,P] of x [...,N,P]. A batched product: XLA's CPU compiler transposes x for an unbatched basis."""
    tiled = jnp.broadcast_to(jnp.asarray(basis, x.dtype), (*x.shape[:-2], *basis.shape))
    return jnp.matmul(tiled, x, precision=lax.Precision.HIGHEST)


def _banded(source: Array, target: Array, weight: Array, *, b: int) -> Array:
    batch, height, width, channels = source.shape
    cos_h, sin_h = _basis(np.arange(b + 1), height)
    cos_w, sin_w = _basis(_columns(width, b), width)
    to_rows = np.concatenate([cos_h, -sin_h])
    # [real; imaginary] columns from a row's cosine part, and from its sine part
    to_columns = np.concatenate([cos_w, -sin_w])

    def window(image: Array) -> tuple[Array, Array]:
        # rows first: the large operand is read in its own layout, and what is left is small enough to transpose
        rows = _matmul(to_rows, image.reshape(batch, height, width * channels)).reshape(batch, 2 * (b + 1), width, channels)
        rows = rows.transpose(0, 2, 1, 3).reshape(batch, width, -1)
        both = _matmul(to_columns, rows).reshape(batch, 2, -1, 2, b + 1, channels)
        return both[:, 0, :, 0] - both[:, 1, :, 1], both[:, 0, :, 1] + both[:, 1, :, 0]

    real, imag = _change(*window(source), *window(target), pixels=height * width)
    # a row u stands for -u too, unless they are the same frequency
    twice = np.where((np.arange(b + 1) == 0) | (2 * np.arange(b + 1) == height), 1.0, 2.0) / (height * width)
    scale = (weight * jnp.asarray(twice, weight.dtype)[:, None]).swapaxes(1, 2)[..., None]
    change = jnp.concatenate([real * scale, imag * scale], axis=1).reshape(batch, to_columns.shape[0], -1)
    turn = np.block([[cos_w.T, -sin_w.T], [sin_w.T, cos_w.T]])
    rows = _matmul(turn, change).reshape(batch, 2, width, b + 1, channels)
    rows = rows.transpose(0, 1, 3, 2, 4).reshape(batch, 2 * (b + 1), width * channels)
    return source + _matmul(to_rows.T, rows).reshape(source.shape)
