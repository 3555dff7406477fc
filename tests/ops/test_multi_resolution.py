"""HRDA's fusion, losses and windows against its own head, and the shapes of random windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import multi_resolution as hrda
from segjax.ops.pixel_losses import upsampled_cross_entropy


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_authors_training_head(goldens, seed):
    z = np.load(goldens / f"07_hrda_s{seed}.npz")
    stride, share = int(z["par"][0]), z["par"][1]
    top, bottom, left, right = z["rnd_box"]
    corner, window = np.array([top, left]), (int(bottom - top), int(right - left))

    def loss(low, high, attention):
        fused, masked = hrda.fuse(low, high, attention, corner // stride)
        mean = lambda logits, label, weight: jnp.divide(
            *upsampled_cross_entropy(logits, label, pixel_weight=weight, mean_over="all", chunks=4)
        )
        coarse = (1 - share) * mean(fused, z["in_label"], z["in_weight"])
        fine = share * mean(high, hrda.cut(z["in_label"], corner, window), hrda.cut(z["in_weight"], corner, window))
        return coarse + fine, (fused, masked, coarse, fine)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, (fused, masked, coarse, fine)), gradients = run(*(nhwc(z[f"in_{name}"]) for name in ("lr", "hr", "att")))
    np.testing.assert_allclose(fused, nhwc(z["out_fused"]), atol=5e-5)
    np.testing.assert_allclose(masked, nhwc(z["out_lr_masked"]), atol=5e-5)
    np.testing.assert_allclose(coarse, z["out_loss_fused"], atol=1e-5)
    np.testing.assert_allclose(fine, z["out_loss_hr"], atol=2e-6)
    for name, gradient, atol in zip(("lr", "hr", "att"), gradients, (1e-7, 5e-8, 5e-8), strict=True):
        np.testing.assert_allclose(gradient, nhwc(z[f"grad_{name}"]), atol=atol)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_authors_sliding_windows(goldens, seed):
    z = np.load(goldens / f"07_hrda_s{seed}.npz")
    size, stride = z["in_label"].shape[1:], int(z["par"][0])
    window = size[0] // 2, size[1] // 2
    corners = hrda.window_corners(size, window, (window[0] // 2, window[1] // 2))
    boxes = np.stack([corners[:, 0], corners[:, 0] + window[0], corners[:, 1], corners[:, 1] + window[1]], 1)
    np.testing.assert_array_equal(boxes, z["out_boxes"])
    windows = nhwc(z["in_hr_slide"])  # all images of the first window, then of the second: ours keeps an image's windows together
    windows = windows.reshape(len(corners), -1, *windows.shape[1:]).swapaxes(0, 1).reshape(windows.shape)

    @jax.jit
    def run(windows, low, attention):
        detail = hrda.merge_windows(windows, corners // stride, (size[0] // stride, size[1] // stride))
        return detail, hrda.fuse(low, detail, attention)[0]

    detail, fused = run(windows, nhwc(z["in_lr"]), nhwc(z["in_att"]))
    np.testing.assert_allclose(detail, nhwc(z["out_hr_slide"]), atol=5e-5)
    np.testing.assert_allclose(fused, nhwc(z["out_fused_slide"]), atol=5e-5)


def test_windows_come_back_as_the_picture():
    image = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    corners = hrda.window_corners((16, 24), (8, 16), (4, 8))
    assert len(corners) == 6

    @jax.jit
    def run(image):
        windows = hrda.cut_windows(image, corners, (8, 16))
        return windows, hrda.merge_windows(windows, corners, (16, 24))

    windows, merged = jax.device_get(run(image))
    np.testing.assert_array_equal(windows[7], image[1, 0:8, 8:24])
    np.testing.assert_allclose(merged, image, atol=1e-6)


def test_corners_are_the_codes():
    draw = jax.jit(jax.vmap(lambda key: hrda.detail_corner(key, (1024, 560), (512, 512))))
    corners = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    assert set(corners[:, 0]) == set(range(0, 512, 8)) and set(corners[:, 1]) == set(range(0, 48, 8))
    assert hrda.detail_corner(jax.random.key(0), (64, 64), (64, 64)).tolist() == [0, 0]


def test_errors():
    x, key = np.zeros((1, 4, 4, 2), np.float32), jax.random.key(0)
    with pytest.raises(ConfigError, match="larger"):
        hrda.detail_corner(key, (64, 64), (64, 128))
    with pytest.raises(ConfigError, match="corner"):
        hrda.fuse(x, x, x)
    with pytest.raises(ConfigError, match="cover"):
        hrda.merge_windows(x, np.array([[0, 0]]), (8, 4))
