"""The supervised terms: which heads, which pixels, divided by what."""

import jax
import numpy as np

from segjax.ops import pixel_losses
from segjax.ops.supervised import supervised_terms


def sample():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 8, 10)).astype(np.uint8)
    label[label == 3] = 255
    logits = rng.normal(size=(2, 8, 10, 3)).astype(np.float32)
    return logits, label


def test_each_option_is_that_of_the_loss():
    logits, label = sample()
    weight = np.random.default_rng(1).random(label.shape).astype(np.float32)
    loss, aux = jax.device_get(jax.jit(lambda x: [pixel_losses.cross_entropy(scale * x, label) for scale in (1, 2)])(logits))

    @jax.jit
    def terms(logits):
        run = lambda **keywords: supervised_terms({"logits": logits, "aux_logits": 2 * logits}, label, align_corners=False, **keywords)
        return (
            run(),
            run(pixel_weight=weight, mean_over="all", weight=0.5, name="loss/mix"),
            run(hard=(0.3, 5)),
            run(hard=(0.3, 5), pixel_weight=weight),
        )

    plain, mix, hard, weighted_hard = terms(logits)
    np.testing.assert_allclose(plain["loss/ce"], (loss.sum(), (label != 255).sum()), rtol=1e-5)
    np.testing.assert_allclose(plain["loss/ce_aux"], (0.1 * aux.sum(), (label != 255).sum()), rtol=1e-5)
    np.testing.assert_allclose(mix["loss/mix"], (0.5 * (weight * loss).sum(), label.size), rtol=1e-5)
    kept = (np.exp(-loss) < 0.3) & (label != 255)
    assert 5 < kept.sum() < (label != 255).sum()
    np.testing.assert_allclose(hard["loss/ce"], (loss[kept].sum(), kept.sum()), rtol=1e-5)
    np.testing.assert_allclose(weighted_hard["loss/ce"], ((weight * loss)[kept].sum(), weight[kept].sum()), rtol=1e-5)
