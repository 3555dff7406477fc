"""The convolution as products equals the convolution, with its gradients, in both of its forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import conv_products
from segjax.ops.conv import conv2d


@pytest.mark.parametrize("gathered", [True, False])
@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, None, 3), (2, ((1, 1), (1, 1)), 3), (2, ((0, 1), (0, 1)), 3), (1, None, 1)])
def test_equals_the_convolution(monkeypatch, gathered, stride, padding, kernel):
    monkeypatch.setattr(conv_products, "_GATHERED", 1 << 24 if gathered else 0)
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 7, 6, 5), (kernel, kernel, 5, 3)))
    weight = weight / kernel  # sums of a size for float32 to hold to 2e-5

    def both(function):
        return jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(function(*a, stride=stride, padding=padding))), argnums=(0, 1))(x, weight)

    expected, got = both(conv2d), both(conv_products.steady_conv2d)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5)
    assert (
        conv_products.steady_conv2d(x, weight, stride=stride, padding=padding).shape
        == conv2d(x, weight, stride=stride, padding=padding).shape
    )
