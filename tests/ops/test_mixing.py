"""Mixing against the originals' masks and pictures, and the laws of the random choices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.ops import mixing
from segjax.ops.photometric_views import blend_view

CLASSES = 19


present_classes, classes_mask = jax.jit(mixing.present_classes, static_argnums=1), jax.jit(mixing.classes_mask)
paste = jax.jit(mixing.paste)


def nhwc(x):
    return x.transpose(0, 2, 3, 1)


def drawn(classes, *, always_ignored=False):
    """Rows of class numbers, -1 padded, as `present_classes` lays them out."""
    chosen = np.zeros((len(classes), CLASSES + 1), bool)
    for row, values in zip(chosen, classes, strict=True):
        row[[min(v, CLASSES) for v in values if v >= 0]] = True
    chosen[:, -1] |= always_ignored
    return chosen


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_cross_domix(goldens, seed):
    vectors = np.load(goldens / f"05b_diga_crossdomix_s{seed}.npz")
    present = present_classes(vectors["in_label"], CLASSES)
    np.testing.assert_array_equal(np.sum(present, 1), vectors["out_n_classes"])
    picked = drawn(vectors["rnd_classes"])
    np.testing.assert_array_equal(picked.sum(1), vectors["out_n_classes"] // 2)
    assert not (picked & ~np.asarray(present)).any()
    mask = classes_mask(vectors["in_label"], drawn(vectors["rnd_classes"], always_ignored=True))
    np.testing.assert_array_equal(mask, vectors["out_mask"])
    blend = jax.jit(blend_view, static_argnames="centred")
    view = blend(nhwc(vectors["in_x"]), nhwc(vectors["in_A"]), float(vectors["par_beta"]), centred=True)
    np.testing.assert_allclose(view, nhwc(vectors["out_x_aug"]), atol=1e-5)
    np.testing.assert_allclose(paste(mask, view, nhwc(vectors["in_T"])), nhwc(vectors["out_x_mix"]), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_digas_self_training_mix(goldens, seed):
    vectors = np.load(goldens / f"05c_diga_selftrain_s{seed}.npz")
    mask = classes_mask(vectors["in_label_s"], drawn(vectors["rnd_classes"], always_ignored=True))
    np.testing.assert_array_equal(mask, vectors["out_mix_mask"])
    np.testing.assert_array_equal(paste(mask, vectors["in_label_s"], vectors["out_pseudo"]), vectors["out_mix_label"])
    mixed = paste(mask, nhwc(vectors["in_x_s"]), nhwc(vectors["in_x_t"]))
    np.testing.assert_allclose(mixed, nhwc(vectors["out_mix_image"]), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_daformers_class_mix(goldens, seed):
    vectors = np.load(goldens / f"06a_dacs_step_s{seed}.npz")
    label, picked = vectors["in_label"], drawn(vectors["rnd_classes"])
    pool = np.asarray(present_classes(label, CLASSES)).any(0)
    assert (picked.sum(1) == -(-pool.sum() // 2)).all() and not (picked & ~pool).any()
    mask = classes_mask(label, picked)
    np.testing.assert_allclose(paste(mask, nhwc(vectors["in_x_src"]), nhwc(vectors["in_x_trg"])), nhwc(vectors["out_mixed_img"]), atol=5e-5)
    np.testing.assert_array_equal(paste(mask, label, vectors["out_pseudo_label"]), vectors["out_mixed_lbl"])


@pytest.mark.parametrize("seed", [0, 1])
def test_mics_blocks(goldens, seed):
    vectors = np.load(goldens / f"08_mic_mask_s{seed}.npz")
    for case in "012":
        uniform, (block, ratio), want = vectors[f"rnd_u{case}"][:, 0], vectors[f"par{case}"], vectors[f"out_mask{case}"][:, 0]
        size = want.shape[1:]
        assert mixing.block_grid(size, int(block)) == uniform.shape[1:]
        mask = jax.jit(mixing.blocks_from, static_argnums=(1, 2))(uniform, size, float(ratio))
        np.testing.assert_array_equal(mask, want)
        if f"in_x{case}" in vectors:
            masked = paste(mask, nhwc(vectors[f"in_x{case}"]), np.zeros(3, np.float32))
            np.testing.assert_allclose(masked, nhwc(vectors[f"out_x{case}"]), atol=5e-5)


def labels(batch=200, side=12, seed=0):
    """Images of 1 to 7 values each, 255 in many of them."""
    rng = np.random.default_rng(seed)
    values = np.array([0, 3, 4, 7, 12, 18, 255])
    return np.stack([rng.choice(rng.permutation(values)[: rng.integers(1, 8)], (side, side)) for _ in range(batch)]).astype(np.uint8)


def halves(label, mask):
    """For each image its values, and those of them that are True in the mask: a value is wholly in or wholly out."""
    for image, chosen in zip(label, np.asarray(mask), strict=True):
        inside, outside = set(image[chosen].tolist()), set(image[~chosen].tolist())
        assert not inside & outside
        yield inside | outside, inside


def test_cross_domix_takes_the_smaller_half_and_the_ignored():
    label = labels()
    mask = jax.jit(mixing.cross_domix_mask, static_argnums=2)(jax.random.key(0), label, CLASSES)
    for values, inside in halves(label, mask):
        n = len(values)
        assert 255 not in values - inside
        # 255 comes free when it is not among the drawn ones
        assert len(inside) in ({n // 2, n // 2 + 1} if 255 in values else {n // 2})


def test_class_mix_takes_the_larger_half():
    label = labels()
    run = jax.jit(mixing.class_mix_mask, static_argnums=2, static_argnames=("pool", "ignored"))
    own = run(jax.random.key(1), label, CLASSES)
    assert all(len(inside) == -(-len(values) // 2) for values, inside in halves(label, own))
    never = run(jax.random.key(1), label, CLASSES, ignored="never")
    for values, inside in halves(label, never):
        assert 255 not in inside and len(inside) == -(-len(values - {255}) // 2)
    pooled = run(jax.random.key(1), label[:20], CLASSES, pool="batch")
    sizes = [(len(values), len(inside)) for values, inside in halves(label[:20], pooled)]
    assert any(inside != -(-values // 2) for values, inside in sizes)  # seven values in the batch, four drawn, some of them elsewhere


def test_every_subset_is_equally_likely():
    present = np.broadcast_to(np.array([True, False, True, True, False, True]), (6000, 6))
    chosen = np.asarray(jax.jit(mixing.choose_half, static_argnums=2)(jax.random.key(2), present, "floor"))
    subsets, counts = np.unique(chosen, axis=0, return_counts=True)
    assert subsets.sum(1).tolist() == [2] * 6 and not subsets[:, [1, 4]].any()
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)


def test_nothing_present_and_one_class():
    key = jax.random.key(3)
    one = np.full((1, 4, 4), 7, np.uint8)

    @jax.jit
    def run(key):
        masks = mixing.class_mix_mask(key, one, CLASSES), mixing.cross_domix_mask(key, one, CLASSES)
        return mixing.choose_half(key, jnp.zeros((2, 5), bool), "ceil"), *masks

    none, mixed, crossed = jax.device_get(run(key))
    assert not none.any() and mixed.all() and not crossed.any()


def test_blocks_hide_their_share_of_each_image():
    block_mask = jax.jit(mixing.block_mask, static_argnums=(1, 2), static_argnames=("block", "ratio"))
    mask = np.asarray(block_mask(jax.random.key(4), 64, (32, 48), block=8, ratio=0.7))
    squares = mask.reshape(64, 4, 8, 6, 8)
    assert (squares == squares[:, :, :1, :, :1]).all()
    assert abs(mask.mean() - 0.3) < 0.04 and len(np.unique(mask, axis=0)) == 64
    assert np.all(block_mask(jax.random.key(4), 1, (8, 8), block=4, ratio=0.0))


def test_devices_agree_on_the_classes_of_the_batch():
    label, key = labels(8), jax.random.key(5)
    rows = jax.NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("data"))
    run = jax.jit(mixing.class_mix_mask, static_argnums=2, static_argnames=("pool", "ignored"))
    np.testing.assert_array_equal(
        run(key, jax.device_put(label, rows), CLASSES, pool="batch"), run(key, label, CLASSES, pool="batch", ignored="value")
    )


def test_errors():
    key, label = jax.random.key(0), np.zeros((1, 4, 4), np.uint8)
    for keywords in ({"pool": "set"}, {"ignored": "always"}):
        with pytest.raises(ConfigError):
            mixing.class_mix_mask(key, label, CLASSES, **keywords)
    for keywords in ({"block": 16, "ratio": 0.5}, {"block": 0, "ratio": 0.5}, {"block": 2, "ratio": 1.5}):
        with pytest.raises(ConfigError):
            mixing.block_mask(key, 1, (4, 8), **keywords)
