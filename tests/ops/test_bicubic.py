"""Bicubic resizing against torch and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.bicubic import bicubic, bicubic_matrix


@pytest.mark.parametrize("size", [(7, 5), (3, 11), (14, 10), (4, 4), (1, 2)])
def test_it_is_torch_s(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    there = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(bicubic(jnp.asarray(x), size), there.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_weights_sum_to_one_and_the_same_size_changes_nothing():
    np.testing.assert_allclose(bicubic_matrix(5, 13).sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(bicubic_matrix(6, 6), np.eye(6))
    x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    assert bicubic(x, (8, 3)).dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(bicubic(x, (4, 4)), np.float32), np.ones((1, 4, 4, 2)))
