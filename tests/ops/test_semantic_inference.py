"""From queries to a semantic map, and deformable attention with its positions, against the originals' own numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.deformable import deformable_attention
from segjax.ops.mask_classification import semantic_map
from segjax.ops.positions import sine_positions
from segjax.ops.resize import bilinear


def test_the_semantic_map_is_the_originals(goldens):
    raw = np.load(goldens / "09d_semantic_inference_s0.npz")
    padded, image, out = (tuple(size) for size in raw["par_sizes"].tolist()[:3])
    masks = raw["in_mask_logits"].transpose(0, 2, 3, 1)

    @jax.jit
    def run(*x):
        return semantic_map(*x, padded), bilinear(semantic_map(*x, padded, image), out)

    (whole,), (final,) = jax.device_get(run(raw["in_class_logits"], masks))
    np.testing.assert_allclose(whole.transpose(2, 0, 1), raw["out_score_plain"], atol=1e-5)
    np.testing.assert_allclose(final.transpose(2, 0, 1), raw["out_score_final"], atol=1e-5)
    stable = raw["aux_stable_plain"]
    np.testing.assert_array_equal(final.argmax(-1)[stable], raw["out_map_plain"][stable])


def test_deformable_attention_is_the_originals(goldens):
    raw = np.load(goldens / "09e_msdeform_s0.npz")
    shapes = tuple(tuple(size) for size in raw["par_shapes"].tolist())

    def run(*x):
        found = deformable_attention(x[0], shapes, *x[1:])
        return jnp.sum(found.reshape(raw["out"].shape) * raw["in_cotangent"]), found

    given = [raw[name] for name in ("in_value", "in_loc", "in_weight")]
    slopes, found = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(*given)
    np.testing.assert_allclose(np.asarray(found).reshape(raw["out"].shape), raw["out"], atol=1e-5)
    for slope, name, atol in zip(slopes, ("value", "loc", "weight"), (5e-5, 2e-3, 2e-4), strict=True):
        np.testing.assert_allclose(slope, raw[f"grad_{name}"], atol=atol)
    np.testing.assert_allclose(np.asarray(sine_positions(9, 13, 32)).transpose(2, 0, 1), raw["out_pos"], atol=1e-5)
