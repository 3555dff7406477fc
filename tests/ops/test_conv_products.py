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
    x, weight = (rng.normal(size=size).astype(np.float32) for size in ((2, 7, 6, 5), (kernel, kernel, 5, 3)))
    weight = weight / kernel  # sums of a size for float32 to hold to 2e-5

    def both(function):
        def loss(*a):
            y = function(*a, stride=stride, padding=padding)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)

    expected, got = jax.jit(lambda *a: [both(f)(*a) for f in (conv2d, conv_products.steady_conv2d)])(x, weight)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-5)
