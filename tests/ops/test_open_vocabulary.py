"""Classes in words: the ensemble of two vocabularies against the original's numbers, pooling and cosines against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.mask_classification import semantic_map
from segjax.ops.open_vocabulary import cosine_logits, geometric_ensemble, pool_by_masks
from segjax.ops.resize import bilinear


@pytest.mark.parametrize("on_valid", [False, True])
def test_the_ensemble_is_the_originals(goldens, on_valid):
    raw = np.load(goldens / "09d_ensemble_s1.npz")
    padded, image, out, clip = (tuple(size) for size in raw["par_sizes"].tolist())
    masks, (alpha, beta) = raw["in_mask_logits"].transpose(0, 2, 3, 1), raw["par_alpha_beta"].tolist()
    assert 0 < raw["in_seen"].sum() < 19

    @jax.jit
    def run(masks):
        valid = (bilinear(masks, clip) > 0).any((1, 2)) if on_valid else None
        logits = geometric_ensemble(
            raw["in_class_logits"], raw["in_out_vocab_logits"], tuple(raw["in_seen"] > 0), alpha=alpha, beta=beta, valid=valid
        )
        return valid, semantic_map(logits, masks, padded), bilinear(semantic_map(logits, masks, padded, image), out)

    valid, whole, final = run(masks)
    assert not on_valid or not valid[0, 0]  # the first query's mask is empty
    name = "ensvalid" if on_valid else "ens"
    np.testing.assert_allclose(whole[0, ::3, ::3].transpose(2, 0, 1), raw[f"out_score_{name}"], atol=1e-5)
    stable = raw[f"aux_stable_{name}"]
    np.testing.assert_array_equal(np.asarray(final)[0].argmax(-1)[stable], raw[f"out_map_{name}"][stable])


def test_pooling_and_cosines():
    rng = np.random.default_rng(0)
    features, masks = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    masks[1, :, :, 2] = -1  # empty
    pool = lambda masks: pool_by_masks(jnp.asarray(features), masks)
    run = jax.jit(lambda masks: (pool(jnp.stack([masks, -masks])), jax.grad(lambda m: pool(m).sum())(masks)))
    got, slope = jax.device_get(run(masks))
    for n, sign in enumerate((1, -1)):
        inside = sign * masks > 0
        want = np.einsum("bhwc,bhwq->bqc", features, inside) / np.maximum(inside.sum((1, 2)), 1)[..., None]
        np.testing.assert_allclose(got[n], want, atol=1e-6)
    assert not got[0, 1, 2].any()
    assert not slope.any()

    x, text = rng.normal(size=(2, 7)), rng.normal(size=(5, 7))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    cosine = x @ text.T / np.linalg.norm(x, axis=1, keepdims=True)
    want = np.stack([cosine[:, 0], cosine[:, 1:4].max(1), cosine[:, 4]], 1)
    logits = jax.jit(cosine_logits, static_argnums=3)
    for scale, factor in ((np.log(1 / 0.07), 1 / 0.07), (9.0, 100.0)):
        found = logits(x.astype(np.float32), text.astype(np.float32), scale, (1, 3))
        np.testing.assert_allclose(found, factor * want, rtol=1e-4)
