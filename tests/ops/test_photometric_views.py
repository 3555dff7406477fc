"""The strong views: kornia 0.5.8's numbers (stored), DAFormer's kernel sizes, and what the chains promise."""

import colorsys

import jax
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import photometric, photometric_views


@pytest.fixture(scope="module")
def kornia(goldens):
    return np.load(goldens / "kornia_photometric.npz")


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("values", ["unit", "signed"])
def test_each_operation_is_kornias(kornia, values):
    """unit: 0..1. signed: normalised pictures, as DiGA hands them over."""
    image, factor = nhwc(kornia[f"in_{values}"]), kornia["par_factor"]

    @jax.jit
    def run(image):
        return {
            "brightness": photometric.shift_brightness(image, factor - 1),
            "contrast": photometric._JITTER["kornia"][1](image, factor),
            "saturation": photometric.scale_saturation(image, factor),
            "hue": photometric.adjust_hue(image, kornia["par_hue"]),
            "grey": photometric.greyscale(image),
            "blur3": photometric.blur(image, np.array([2.0, 2.0]), 3),
            "blur57": photometric.blur(image, np.array([0.8, 0.8]), (5, 7)),
            "sharpness": photometric_views.adjust_sharpness(image, kornia["par_sharpness"]),
        }

    for name, found in run(image).items():
        atol = 1e-4 if (values, name) == ("signed", "hue") else 5e-6  # kornia adds 1e-8 to a value before dividing by it: seen next to 0
        np.testing.assert_allclose(found, nhwc(kornia[f"out_{values}_{name}"]), atol=atol, err_msg=name)


@pytest.mark.parametrize("values", ["unit", "signed"])
def test_jitter_in_a_drawn_order_is_kornias(kornia, values):
    image = nhwc(kornia[f"in_{values}"])
    drawn = [kornia[f"rnd_{values}_{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]

    @jax.jit
    def run(image):
        for place in kornia[f"rnd_{values}_order"]:
            image = photometric._JITTER["kornia"][place](image, drawn[place])
        return image

    np.testing.assert_allclose(run(image), nhwc(kornia[f"out_{values}_jitter"]), atol=5e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_dacs_kernel_sizes(goldens, seed):
    vectors = np.load(goldens / f"06b_rcs_ema_lr_s{seed}.npz")
    found = [[photometric_views.dacs_kernel_size(int(side)) for side in size] for size in vectors["in_blur_hw"]]
    assert found == vectors["out_blur_kernel"].tolist()


def images(batch=8, size=(16, 20)):
    return np.random.default_rng(0).random((batch, *size, 3)).astype(np.float32)


def test_the_order_is_drawn():
    """All orders of three operations occur, and nothing but orders: each result is one of the six compositions."""
    image, key = images(1, (4, 4)), jax.random.key(0)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.9}
    jitter = lambda key, **how: photometric.color_jitter(key, image, **strengths, rule="kornia", **how)
    both = jax.jit(lambda i: [jitter(jax.random.fold_in(key, i), **how) for how in (dict(order="random"), {})])
    found, fixed = (np.stack(x) for x in zip(*(both(i) for i in range(40)), strict=True))
    assert len(np.unique(found.round(5), axis=0)) == 40
    same = [np.abs(found[i] - fixed[i]).max() < 1e-6 for i in range(40)]
    assert 1 <= sum(same) < 30


def test_digas_chain_and_its_share():
    image = images()

    @jax.jit
    def view(key):
        return photometric_views.strong_view(key, image, **photometric_views.DIGA), photometric_views.diga_view(key, image, share=0.3)

    out, share = (np.asarray(x) for x in view(jax.random.key(1)))
    assert out.shape == image.shape and np.isfinite(out).all() and out.min() >= -1e-6 and out.max() <= 1 + 1e-6
    np.testing.assert_allclose(share, 0.3 * out + 0.7 * image, atol=1e-6)
    np.testing.assert_array_equal(out, view(jax.random.key(1))[0])
    again = np.asarray(view(jax.random.key(2))[0])
    assert ((out != again).any((1, 2, 3))).sum() >= 6  # each image changes but for .5 * .7 * .2 * .7 of them


def test_the_settings_differ_where_the_scripts_do():
    for name in ("DIGA", "DIGA_SYNTHIA", "DIGA_GENERALISATION", "DAFORMER", "DACS"):
        chain = getattr(photometric_views, name)
        shape = jax.eval_shape(lambda key, chain=chain: photometric_views.strong_view(key, images(), **chain), jax.random.key(0))
        assert shape.shape == images().shape
    assert photometric_views.DIGA_SYNTHIA["jitter_probability"] == 0.7 and photometric_views.DIGA["jitter_probability"] == 0.5


def test_daformer_changes_all_or_none():
    image = images(16, (14, 14))
    view = jax.jit(lambda key: photometric_views.strong_view(key, image, **photometric_views.DAFORMER))
    changed = [np.abs(np.asarray(view(jax.random.key(i))) - image).max((1, 2, 3)) > 0 for i in range(40)]
    assert all(row.all() or not row.any() for row in changed)
    assert 28 <= sum(row.all() for row in changed) < 40  # 1 - .2 * .5 of them


def test_nothing_asked_for_changes_nothing():
    image, key = images(2), jax.random.key(0)
    assert photometric_views.strong_view(key, image) is image
    np.testing.assert_array_equal(jax.jit(photometric_views.blend_view)(image, image + 1, 0.0), image)


def test_the_faithful_view_clamps_normalised_values():
    """Hand-made: only the clamp of a jitter that does nothing else (brightness factor 1), on normalised BGR."""
    image = images(2, (4, 5))
    how = dict(share=0.4, faithful=True, jitter=(1e-9, 0.0, 0.0, 0.0))
    view = jax.jit(lambda key: photometric_views.diga_view(key, image, **how))(jax.random.key(0))
    mean = np.array([104.00698793, 116.66876762, 122.67891434])[::-1]
    normalised = (255 * image - mean) / 128
    want = (0.4 * (2 * np.clip(normalised, 0, 1) - 1) + 0.6 * normalised) * 128 + mean
    np.testing.assert_allclose(view, want / 255, atol=1e-6)


def test_sharpness_is_pils():
    pil = pytest.importorskip("PIL.ImageEnhance")
    from PIL import Image

    picture = (images(1, (9, 11))[0] * 255).astype(np.uint8)
    sharpen = jax.jit(photometric_views.adjust_sharpness)
    for factor in (0.0, 0.4, 1.7):
        want = np.asarray(pil.Sharpness(Image.fromarray(picture)).enhance(factor), np.float32)
        found = sharpen(picture[None].astype(np.float32) / 255, factor)
        np.testing.assert_allclose(255 * np.asarray(found)[0], want, atol=2)


def test_errors():
    image, key = images(1), jax.random.key(0)
    for keywords in ({"rule": "pil"}, {"order": "any"}):
        with pytest.raises(ConfigError):
            photometric.color_jitter(key, image, brightness=0.1, **keywords)
    with pytest.raises(ConfigError):
        photometric_views.diga_view(key, image, share=1.5)


def test_ssds_changes_are_what_their_hsv_says():
    """Every pixel again by the standard library, with the numbers that were drawn; strengths as Mask2Former's."""
    image = np.random.default_rng(1).random((12, 2, 3, 3)).astype(np.float32)
    key = jax.random.key(5)

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        drawn = jax.random.uniform(keys[0], (4, 12), minval=-1.0), jax.random.bernoulli(keys[1], 0.5, (4, 12))
        return photometric_views.ssd_view(key, image), *drawn, jax.random.bernoulli(keys[2], 0.5, (12,))

    got, drawn, used, first = jax.device_get(run(key))
    drawn = drawn * np.array([32 / 255, 0.5, 0.5, 18 / 180])[:, None]
    shift, contrast, saturation, hue = np.where(used, drawn, 0)
    assert 0 < first.sum() < 12 and all(0 < np.count_nonzero(x) < 12 for x in (shift, contrast, saturation, hue))
    for n in range(12):
        want = np.clip(image[n] + shift[n], 0, 1)
        want = np.clip(want * (1 + contrast[n]), 0, 1) if first[n] else want
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in want.reshape(-1, 3)]
        want = np.array([colorsys.hsv_to_rgb((h + hue[n]) % 1, min(s * (1 + saturation[n]), 1), v) for h, s, v in hsv]).reshape(2, 3, 3)
        want = want if first[n] else np.clip(want * (1 + contrast[n]), 0, 1)
        np.testing.assert_allclose(got[n], want, atol=2e-6)
