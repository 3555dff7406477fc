"""Feature distance against DAFormer's step, and what it does where its own code gives NaN."""

import jax
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import feature_distance as fd
from segjax.ops.pixel_losses import masked_mean

downscale_label = jax.jit(fd.downscale_label, static_argnums=1, static_argnames=("num_classes", "min_ratio"))
thing_mask = jax.jit(fd.thing_mask, static_argnums=(1, 2), static_argnames=("num_classes", "min_ratio"))


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_daformers_feature_distance(goldens, seed):
    z = np.load(goldens / f"06a_dacs_step_s{seed}.npz")
    weight, ratio = z["par_fd"]
    things, features = tuple(z["par_things"].tolist()), nhwc(z["in_feat_s"])
    assert things == fd.CITYSCAPES_THINGS
    factor = z["in_label"].shape[2] // features.shape[2]
    small = downscale_label(z["in_label"], factor, num_classes=19, min_ratio=float(ratio))
    np.testing.assert_array_equal(small, z["out_fd_label"])
    mask = thing_mask(z["in_label"], features.shape[1:3], things, num_classes=19, min_ratio=float(ratio))
    np.testing.assert_array_equal(mask, z["out_fd_mask"])

    def loss(features):
        total, count = fd.feature_distance(
            features, nhwc(z["in_feat_imnet"]), z["in_label"], num_classes=19, classes=things, min_ratio=float(ratio)
        )
        return weight * total / count

    value, gradient = jax.jit(jax.value_and_grad(loss))(features)
    np.testing.assert_allclose(value, z["out_loss_fd"], atol=2e-7)
    np.testing.assert_allclose(gradient, nhwc(z["grad_feat_s"]), atol=2e-8)


def sample():
    rng = np.random.default_rng(0)
    features, reference = (rng.normal(size=(2, 2, 3, 4)).astype(np.float32) for _ in range(2))
    return features, reference, np.zeros((2, 8, 12), np.uint8)


def test_no_thing_in_the_batch():
    """Their mean is NaN; here nothing is summed, nothing counted, and the gradient is 0."""
    features, reference, label = sample()

    @jax.jit
    def run(x):
        (total, count), slope = jax.value_and_grad(lambda x: fd.feature_distance(x, reference, label, num_classes=19), has_aux=True)(x)
        return total, count, masked_mean(total, count), slope

    total, count, mean, slope = run(features)
    assert total == 0 and count == 0 and mean == 0
    assert not np.any(slope)


def test_equal_features_have_no_gradient():
    features, _, label = sample()
    run = jax.jit(jax.value_and_grad(lambda x: fd.feature_distance(x, features, label + 11, num_classes=19)[0]))
    total, gradient = run(features)
    assert total == 0 and not np.any(gradient)


def test_without_classes_every_position_counts():
    features, reference, label = sample()
    run = jax.jit(lambda *x: fd.feature_distance(*x, num_classes=19, classes=None))
    total, count = run(features, reference, label + 255)
    assert count == 12
    np.testing.assert_allclose(total, np.linalg.norm(features - reference, axis=-1).sum(), rtol=1e-6)


def test_a_square_needs_its_share():
    label = np.full((1, 4, 9), 255, np.uint8)
    label[0, :, :4] = 11
    label[0, 0, :4] = 0  # 12 of 16 pixels: exactly .75
    label[0, :, 4:8] = 13
    label[0, :2, 4:6], label[0, 2, 4] = 255, 255  # 11 of 16
    assert downscale_label(label, 4, num_classes=19).tolist() == [[[11, 255]]]
    assert downscale_label(label, 4, num_classes=19, min_ratio=0.5).tolist() == [[[11, 13]]]
    assert downscale_label(label, 1, num_classes=19).tolist() == label.tolist()
    label[0, :, 4:8] = 255
    assert downscale_label(label, 4, num_classes=19).tolist() == [[[11, 255]]]


def test_errors():
    features, reference, label = sample()
    with pytest.raises(ConfigError, match="one shape"):
        fd.feature_distance(features, reference[:, :1], label, num_classes=19)
    with pytest.raises(ConfigError, match="divides"):
        fd.feature_distance(features, reference, label[:, :4], num_classes=19)
    with pytest.raises(ConfigError, match="shorter side"):
        fd.downscale_label(label, 9, num_classes=19)
