"""Views of an image: an equivariant network answers as from one view, an uneven one as the formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import inference, windows
from segjax.ops.resize import bilinear

IMAGE = np.random.default_rng(1).integers(0, 256, (2, 12, 20, 3)).astype(np.uint8)
keep = lambda logits: logits if logits.shape[1:3] == (12, 20) else bilinear(logits, (12, 20))


def pointwise(x):
    """Sees a pixel at a time: mirrored images give mirrored logits."""
    return x.astype(jnp.float32) / 64


def uneven(x):
    """Knows left from right and small from large."""
    return x.astype(jnp.float32) / 64 + jnp.arange(x.shape[2])[:, None] / x.shape[1]


def softmax(x):
    weight = np.exp(x)
    return weight / weight.sum(-1, keepdims=True)


def combined(network, image, **how):
    return jax.jit(lambda x: inference.combine_views(network, x, keep, **how))(image)


@pytest.mark.parametrize("combine", inference.COMBINE)
def test_mirror_images_of_an_equivariant_network_change_nothing(combine):
    found = combined(pointwise, IMAGE, flip=True, combine=combine)
    plain = IMAGE.astype(np.float32) / 64
    np.testing.assert_allclose(found, softmax(plain) if combine == "softmax" else plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combine", inference.COMBINE)
def test_scales_of_a_constant_image_change_nothing(combine):
    flat = np.full((1, 12, 20, 3), (10, 200, 90), np.uint8)
    found = combined(pointwise, flat, scales=(0.5, 1.0, 1.75), flip=True, combine=combine)
    plain = flat.astype(np.float32) / 64
    np.testing.assert_allclose(found, softmax(plain) if combine == "softmax" else plain, rtol=1e-5, atol=1e-6)


rescale = jax.jit(inference.rescale, static_argnums=1)


@jax.jit
def views(whole, half):
    """The four views of an uneven network, each at the full size."""
    found = []
    for image in (whole, half):
        for mirrored in (False, True):
            logits = uneven(image[:, :, ::-1] if mirrored else image)
            found.append(keep(logits[:, :, ::-1] if mirrored else logits))
    return jnp.stack(found)


@pytest.mark.parametrize("combine", inference.COMBINE)
def test_views_are_combined_as_documented(combine):
    found = combined(uneven, IMAGE, scales=(1.0, 0.5), flip=True, combine=combine)
    logits = np.asarray(views(IMAGE, rescale(IMAGE, 0.5)))
    want = {"softmax": softmax(logits).mean(0), "logits": logits.mean(0), "max": logits.max(0)}[combine]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    assert np.abs(want - (softmax(logits[0]) if combine == "softmax" else logits[0])).max() > 0.01  # the views do differ


def test_a_window_in_every_view():
    function = lambda x: windows.slide(uneven, x, window=(5, 7), stride=(3, 4), batch=3)
    each = lambda x: (function(x) + function(x[:, :, ::-1])[:, :, ::-1]) / 2
    both = jax.jit(lambda x: (inference.combine_views(function, x, keep, flip=True, combine="logits"), each(x)))
    np.testing.assert_allclose(*both(IMAGE), rtol=1e-5, atol=1e-5)


def test_rescaled_images_are_images():
    half = rescale(IMAGE, 0.5)
    assert half.shape == (2, 6, 10, 3) and half.dtype == np.uint8
    np.testing.assert_allclose(half, jax.jit(bilinear, static_argnums=1)(IMAGE.astype(np.float32), (6, 10)), atol=0.5)
    assert jax.eval_shape(lambda x: inference.rescale(x, 0.375), IMAGE).shape == (
        2,
        5,
        8,
        3,
    )  # 4.5 and 7.5 are rounded half up, as mmcv does


def test_an_unknown_way_to_combine():
    with pytest.raises(ValueError, match="softmax, logits, max"):
        inference.combine_views(pointwise, IMAGE, keep, flip=True, combine="mean")
