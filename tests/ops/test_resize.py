"""Resizing against torch, PIL and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.errors import ConfigError
from segjax.ops import resize

SIZES = [((5, 7), (11, 19)), ((16, 12), (8, 32)), ((9, 9), (1, 4)), ((1, 3), (6, 3)), ((8, 16), (64, 128)), ((12, 10), (12, 10))]
bilinear = jax.jit(resize.bilinear, static_argnums=(1, 2))


def image(size, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *size, 3)).astype(np.float32)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size_in,size_out", SIZES)
def test_bilinear_equals_torch(size_in, size_out, align_corners):
    torch = pytest.importorskip("torch")
    x = image(size_in)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)), size_out, mode="bilinear", align_corners=align_corners
    )
    np.testing.assert_allclose(bilinear(x, size_out, align_corners), want.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_bilinear_known_values():
    row = np.array([0.0, 1.0, 3.0], np.float32).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(bilinear(row, (1, 6))[0, 0, :, 0], [0, 0.25, 0.75, 1.5, 2.5, 3])
    np.testing.assert_allclose(bilinear(row, (1, 5), True)[0, 0, :, 0], [0, 0.5, 1, 2, 3])


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_plane_stays_a_plane(align_corners):
    matrix = resize.interpolation_matrix(37, 113, align_corners)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    assert ((matrix > 0).sum(1) <= 2).all()
    ramp = matrix.astype(float) @ np.arange(37)
    step = 36 / 112 if align_corners else 37 / 113
    np.testing.assert_allclose(np.diff(ramp)[2:-2], step, atol=1e-5)


def test_bilinear_keeps_dtype_and_refuses_integers():
    assert bilinear(jnp.ones((1, 4, 4, 2), jnp.bfloat16), (8, 8)).dtype == jnp.bfloat16
    with pytest.raises(ConfigError, match="nearest"):
        resize.bilinear(np.zeros((1, 4, 4, 3), np.uint8), (8, 8))
    with pytest.raises(ConfigError):
        resize.interpolation_matrix(4, 0)


@pytest.mark.parametrize("size_in,size_out", SIZES)
def test_nearest_equals_torch_and_pil(size_in, size_out):
    torch = pytest.importorskip("torch")
    label = np.random.default_rng(0).integers(0, 256, (2, *size_in)).astype(np.uint8)
    want = torch.nn.functional.interpolate(torch.from_numpy(label)[:, None], size_out, mode="nearest")[:, 0].numpy()
    out = resize.nearest(label, size_out)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, want)
    pil = np.asarray(Image.fromarray(label[0]).resize(size_out[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize.nearest(label[:1], size_out, half_pixel=True)[0], pil)


def test_nearest_takes_channels():
    x = image((4, 6))
    np.testing.assert_array_equal(resize.nearest(x, (2, 3)), x[:, ::2, ::2])


@pytest.mark.parametrize("align_corners", [False, True])
def test_sizes_that_are_data_equal_sizes_that_are_shapes(align_corners):
    x, sizes, canvas = image((7, 9)), np.array([[5, 19], [16, 1]], np.int32), (16, 24)
    found = jax.jit(resize.bilinear_within, static_argnums=(2, 3))(x, sizes, canvas, align_corners)
    label = np.random.default_rng(0).integers(0, 256, (2, 7, 9)).astype(np.uint8)
    chosen = jax.jit(resize.nearest_within, static_argnums=2)(label, sizes, canvas)
    assert found.shape == (2, *canvas, 3) and chosen.shape == (2, *canvas) and chosen.dtype == np.uint8
    for row, (height, width) in enumerate(sizes):
        want = resize.bilinear(x[row : row + 1], (height, width), align_corners)[0]
        np.testing.assert_allclose(found[row, :height, :width], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(chosen[row, :height, :width], resize.nearest(label[row : row + 1], (height, width))[0])
        assert np.isfinite(found).all()
