"""Several batches through one network: one pass where the shapes allow it, with the numbers of one pass each."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.nets.apply import in_turn, train_forward
from segjax.nets.layers import BatchNorm, Conv


class Small(nn.Module):
    @nn.compact
    def __call__(self, image, train=False):
        return {"logits": Conv(3, name="last")(nn.relu(BatchNorm(name="norm")(Conv(4, use_bias=False, name="first")(image), train)))}


def expected(variables, images, kept):
    found, stats = {}, variables["batch_stats"]
    for name, image in images.items():
        found[name], after = train_forward(Small(), variables["params"], stats, image, None)
        stats = after if name in kept else stats
    return found, stats


@pytest.mark.parametrize("kept", [("source", "target"), ("target",)])
@pytest.mark.parametrize("rows", [2, 1])
def test_the_numbers_are_those_of_one_pass_each(rows, kept):
    rng = np.random.default_rng(0)
    image = lambda batch, scale: (scale * rng.uniform(size=(batch, 8, 6, 3))).astype(np.float32)
    images = {"source": image(2, 1.0), "target": image(rows, 0.2)}
    variables = jax.jit(Small().init)(jax.random.key(1), images["source"])
    weight = rng.normal(size=(8, 6, 3)).astype(np.float32)

    def total(params, forward):
        found, stats = forward({**variables, "params": params})
        return sum(jnp.sum(weight * outputs["logits"] ** 2) for outputs in found.values()), (found, stats)

    forms = (
        lambda v: in_turn(Small(), v["params"], v["batch_stats"], images, jax.random.key(2), kept=kept),
        lambda v: expected(v, images, kept),
    )
    got, want = jax.jit(lambda params: [jax.grad(total, has_aux=True)(params, form) for form in forms])(variables["params"])
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    batch_norms = str(jax.make_jaxpr(forms[0])(variables)).count("name=batch_norm")
    assert batch_norms == (1 if rows == 2 and len(kept) == 2 else 2), "one pass where all are kept and alike"
