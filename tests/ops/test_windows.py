"""Sliding windows against mmseg's loop written out in numpy, with a network whose logits depend on the position in its window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import windows


def network(x):
    """Logits [N,h,w,2] that know the pixel, its place in the window and the window's mean: padding or misplaced cuts change them."""
    h, w = x.shape[1:3]
    place = np.arange(h)[:, None] * 0.5 + np.arange(w) * 0.25
    return jnp.stack([x[..., 0] * place, x.mean((1, 2, 3))[:, None, None] + place * x[..., 1]], -1)


def mmseg(image, window, stride):
    """EncoderDecoder.slide_inference: rows of windows, the last ones moved back to the border; sums divided by counts."""
    (height, width), (hc, wc), (hs, ws) = image.shape[1:3], window, stride
    total, count = np.zeros((*image.shape[:3], 2)), np.zeros((height, width, 1))
    for i in range(max(height - hc + hs - 1, 0) // hs + 1):
        for j in range(max(width - wc + ws - 1, 0) // ws + 1):
            bottom, right = min(i * hs + hc, height), min(j * ws + wc, width)
            top, left = max(bottom - hc, 0), max(right - wc, 0)
            total[:, top:bottom, left:right] += np.asarray(network(image[:, top:bottom, left:right]))
            count[top:bottom, left:right] += 1
    assert (count > 0).all()
    return total / count


@pytest.mark.parametrize(
    ("size", "window", "stride", "batch"),
    [
        ((13, 22), (8, 8), (5, 5), 1),
        ((13, 22), (8, 8), (5, 5), 4),  # 2 x 4 windows
        ((13, 22), (8, 8), (8, 3), 4),  # 2 x 6 windows
        ((13, 22), (8, 10), (5, 7), 5),  # 2 x 3 windows: the last group is filled up
        ((16, 16), (8, 8), (8, 8), 2),  # no overlap, no clamping
        ((6, 22), (8, 8), (5, 5), 2),  # lower than the window
        ((6, 7), (8, 8), (5, 5), 9),  # smaller than the window: one window
    ],
)
def test_equals_the_loop(size, window, stride, batch):
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    slide = jax.jit(lambda x: windows.slide(network, x, window=window, stride=stride, batch=batch))
    np.testing.assert_allclose(slide(image), mmseg(image, window, stride), rtol=1e-5, atol=1e-5)


def test_one_program_whatever_the_number_of_windows():
    calls = []

    def traced(x):
        calls.append(x.shape)
        return x[..., :2].astype(jnp.float32)

    jax.jit(lambda x: windows.slide(traced, x, window=(4, 4), stride=(2, 2), batch=3))(jnp.zeros((2, 20, 20, 3)))
    assert set(calls) == {(6, 4, 4, 3)} and len(calls) <= 2  # once for the shape, once in the scan: 81 windows


def test_starts_cover_every_pixel():
    assert windows.starts(2048, 1024, 512).tolist() == [0, 512, 1024]  # HRDA's three windows of a Cityscapes image
    for size, window, stride in ((13, 8, 5), (8, 8, 8), (5, 8, 3), (100, 7, 7), (101, 10, 1)):
        first = windows.starts(size, window, stride)
        assert (windows.coverage(size, min(window, size), first) >= 1).all()
        assert (np.diff(first) <= stride).all() and first[-1] == max(size - window, 0)


def test_errors():
    with pytest.raises(ConfigError, match="stride <= window"):
        windows.starts(20, 4, 5)
