"""The exact GELU against scipy's normal distribution, values and gradients, and what its gradient keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from segjax.ops.gelu import gelu

X = np.concatenate([np.linspace(-12, 12, 241), [-100.0, 100.0, 0.0]])


def test_value_and_gradient():
    slopes = lambda x: [jax.vmap(jax.grad(f))(x) for f in (gelu, lambda x: jax.nn.gelu(x, approximate=False))]
    value, (slope, autodiff) = jax.jit(lambda x: (gelu(x), slopes(x)))(X.astype(np.float32))
    np.testing.assert_allclose(value, X * stats.norm.cdf(X), atol=2e-6, rtol=2e-6)
    np.testing.assert_allclose(slope, stats.norm.cdf(X) + X * stats.norm.pdf(X), atol=2e-6)
    np.testing.assert_allclose(slope, autodiff, atol=2e-6)


def test_half_precision_keeps_its_type():
    x = X[np.abs(X) < 8].astype(jnp.bfloat16)
    value, slope = jax.jit(lambda x: (gelu(x), jax.vmap(jax.grad(gelu))(x)))(x)
    assert value.dtype == slope.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(slope, np.float64), stats.norm.cdf(exact) + exact * stats.norm.pdf(exact), atol=5e-3)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_the_gradient_keeps_the_argument_alone(kind):
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(gelu, x)[1], jax.ShapeDtypeStruct((5, 7), kind)))
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((5, 7), kind)]
