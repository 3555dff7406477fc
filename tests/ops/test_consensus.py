"""Consensus labels and labels from two scales, against DiGA's offline loop."""

import jax
import numpy as np
import pytest

from segjax.ops import consensus
from segjax.ops.resize import bilinear


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_labels_from_two_scales(goldens, seed):
    z = np.load(goldens / f"05d_diga_offline_s{seed}.npz")
    scales = [z[f"in_z_{scale}"].transpose(0, 2, 3, 1) for scale in ("full", "half")]
    size, stable = z["out_pl"].shape, z["aux_pl_stable"]
    assert stable.mean() > 0.99
    run = jax.jit(lambda scales: [consensus.max_labels(scales, size, align_corners=True, chunks=chunks) for chunks in (1, 5)])
    for (found,) in jax.device_get(run(scales)):
        np.testing.assert_array_equal(found[stable], z["out_pl"][stable])


def test_one_scale_is_the_argmax():
    logits = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    found, want = jax.device_get(jax.jit(lambda x: (consensus.max_labels([x], (11, 13)), bilinear(x, (11, 13)).argmax(-1)))(logits))
    assert found.dtype == np.uint8 and (found == want).mean() > 0.99


def test_consensus():
    first, second = np.array([[0, 1, 255, 3]], np.uint8), np.array([[0, 2, 255, 3]], np.int32)
    found = jax.jit(consensus.consensus)(first, second)
    assert found.tolist() == [[0, 255, 255, 3]] and found.dtype == np.uint8
