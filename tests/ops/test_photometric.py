"""Photometric changes against colorsys, scipy-free numpy, and torch where it is there."""

import colorsys

import jax
import numpy as np
import pytest
from PIL import Image

from segjax.errors import ConfigError
from segjax.ops import photometric

LUMA = np.array([0.299, 0.587, 0.114])


greyscale = jax.jit(photometric.greyscale)


def images(batch=3, size=(10, 12), seed=0):
    x = np.random.default_rng(seed).random((batch, *size, 3)).astype(np.float32)
    x[:, 0, :3] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]
    return x


def test_blends_are_torchvisions_formulas():
    x, factor = images(), np.array([0.3, 1.0, 1.8], np.float32)
    f = factor[:, None, None, None]
    luma = (x @ LUMA)[..., None]
    np.testing.assert_allclose(greyscale(x), np.broadcast_to(luma, x.shape), atol=1e-6)
    for adjust, other in (
        (photometric.adjust_brightness, 0),
        (photometric.adjust_contrast, luma.mean((1, 2, 3), keepdims=True)),
        (photometric.adjust_saturation, luma),
    ):
        np.testing.assert_allclose(jax.jit(adjust)(x, factor), np.clip(f * x + (1 - f) * other, 0, 1), atol=1e-6)


def test_greyscale_is_pils():
    x = np.random.default_rng(1).integers(0, 256, (1, 40, 50, 3), np.uint8)
    want = np.asarray(Image.fromarray(x[0]).convert("L"), np.float32)
    got = 255 * np.asarray(greyscale(x.astype(np.float32) / 255))
    assert (got == got[..., :1]).all()
    np.testing.assert_allclose(got[0, ..., 0], want, atol=0.5 + 2e-3)


@pytest.mark.parametrize("shift", [-0.5, -0.21, 0.0, 0.1, 0.4])
def test_hue_equals_colorsys(shift):
    x = images(1)
    out = np.asarray(jax.jit(photometric.adjust_hue)(x, shift))
    for y, row in enumerate(x[0]):
        for column, rgb in enumerate(row):
            h, s, v = colorsys.rgb_to_hsv(*map(float, rgb))
            np.testing.assert_allclose(out[0, y, column], colorsys.hsv_to_rgb((h + shift) % 1, s, v), atol=2e-6)


def test_color_jitter_draws_for_each_image():
    x = images(64, (4, 4))
    jitter = jax.jit(lambda key, x: photometric.color_jitter(key, x, brightness=0.5, probability=0.75))
    out = np.asarray(jitter(jax.random.key(0), x))
    factor = (out[:, 3, 3] / x[:, 3, 3]).min(1)
    changed = np.abs(out - x).max((1, 2, 3)) > 0
    assert 0.55 < changed.mean() < 0.95
    assert len(np.unique(factor[changed].round(4))) > 0.9 * changed.sum()
    assert 0.5 <= factor.min() < 0.65 and factor.max() <= 1.5 + 1e-6
    np.testing.assert_array_equal(out, jitter(jax.random.key(0), x))
    assert (out != jitter(jax.random.key(1), x)).any()


def test_color_jitter_is_the_fixed_sequence():
    """Brightness, contrast, saturation, hue; strength 0 leaves an operation out, and all of them 0 is the identity."""
    x, key = images(), jax.random.key(3)
    np.testing.assert_array_equal(photometric.color_jitter(key, x), x)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}

    @jax.jit
    def run(key, x):
        one_by_one = x
        for name, strength in strengths.items():
            one_by_one = photometric.color_jitter(key, one_by_one, **{name: strength})
        never = photometric.color_jitter(key, x, **strengths, probability=0.0)
        return photometric.color_jitter(key, x, **strengths), one_by_one, never

    together, one_by_one, never = jax.device_get(run(key, x))
    np.testing.assert_allclose(together, one_by_one, atol=1e-6)
    assert together.min() >= 0 and together.max() <= 1
    assert (never == x).all()


blur = jax.jit(photometric.blur, static_argnums=2)


def reference_blur(x, sigma, kernel_size):
    reach = kernel_size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(3)], mode="reflect")
        x = sum(t * np.take(padded, np.arange(k, k + x.shape[axis]), axis) for k, t in enumerate(taps))
    return x


@pytest.mark.parametrize("kernel_size", [1, 3, 9])
def test_blur_equals_a_plain_convolution(kernel_size):
    x, sigma = images(), np.array([0.2, 1.0, 3.0], np.float32)
    out = np.asarray(blur(x, sigma, kernel_size))
    for got, image, s in zip(out, x, sigma, strict=True):
        np.testing.assert_allclose(got, reference_blur(image.astype(np.float64), float(s), kernel_size), atol=1e-6)


def test_gaussian_blur_draws_for_each_image():
    x = np.zeros((64, 9, 9, 3), np.float32)
    x[:, 4, 4] = 1
    out = np.asarray(
        jax.jit(lambda key: photometric.gaussian_blur(key, x, sigma=(0.5, 1.5), probability=0.5, kernel_size=7))(jax.random.key(0))
    )
    np.testing.assert_allclose(out.sum((1, 2)), 1, atol=1e-5)
    peak = out[:, 4, 4, 0]
    blurred = peak < 1
    assert 0.25 < blurred.mean() < 0.75
    bounds = [float(np.asarray(blur(x[:1], np.array([s], np.float32), 7))[0, 4, 4, 0]) for s in (1.5, 0.5)]
    assert bounds[0] - 1e-6 <= peak[blurred].min() < peak[blurred].max() <= bounds[1] + 1e-6
    assert len(np.unique(peak[blurred])) > 0.9 * blurred.sum()


def test_errors():
    x, key = images(), jax.random.key(0)
    for wrong in ({"hue": 0.6}, {"brightness": -0.1}, {"probability": 1.5}):
        with pytest.raises(ConfigError):
            photometric.color_jitter(key, x, **wrong)
    for wrong in ({"kernel_size": 4}, {"kernel_size": 21}, {"sigma": (0.0, 1.0)}, {"sigma": (2.0, 1.0)}, {"probability": -1}):
        with pytest.raises(ConfigError):
            photometric.gaussian_blur(key, x, **wrong)
    with pytest.raises(ConfigError):
        photometric.color_jitter(key, (x * 255).astype(np.uint8), hue=0.1)
