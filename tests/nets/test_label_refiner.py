"""SAM bound to the refinement, on a tiny one: one program for any number of components, one device as eight, no host.

MobileSAM in it: tests/verbs/test_refine.py, and in a training step tests/verbs/test_clouds_run.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from segjax.errors import ConfigError
from segjax.nets import label_refiner
from segjax.nets.efficient_sam import EfficientSam
from segjax.nets.initial import shapes
from segjax.nets.sam import Sam
from segjax.ops import masks, prompts, sam_refine
from segjax.runtime import mesh as meshes

OPTIONS = dict(num_classes=19, min_area=300, places=6, chunk=2)
SIZE = (64, 96)
TINY: dict = dict(embed_dim=8, depth=1, num_heads=1, mlp_dim=8, global_blocks=(0,), features=16)
SAM = Sam(128, 16, **TINY, decoder_depth=1, decoder_heads=2, mask_channels=4)


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(1)
    draw = lambda path, leaf: rng.normal(float("scale" in str(path[-1])), 0.3, leaf.shape).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes(SAM))


def batch(images, seed=0):
    """Pictures of blocks and their labels, of 0 to 6 components."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 19, (images, 2, 3))
    label = np.kron(blocks, np.ones((1, 32, 32))).astype(np.uint8)
    for n in range(images):
        for block in range(n % 7, 6):
            label[n, 32 * (block // 3) : 32 * (block // 3) + 32, 32 * (block % 3) : 32 * (block % 3) + 32] = 255
    image = np.kron(rng.integers(0, 200, (images, 2, 3, 3)), np.ones((1, 32, 32, 1))) + rng.integers(0, 55, (images, *SIZE, 3))
    return image.astype(np.uint8), label


def by_hand(variables, key, image, label):
    """Labels [B,H,W] on one device: all prompts decoded at once, everything after that in numpy."""
    ask = jax.jit(lambda key, x: sam_refine.component_prompts(key, x, num_classes=19, min_area=300, places=6))
    asked = jax.device_get(ask(key, label))
    inner = masks.fitted(SIZE, 128)
    points, kinds = prompts.pack(np.asarray(asked.points), np.ones(asked.points.shape[:3], np.int32))
    points[:, :, :5] = masks.to_frame(points[:, :, :5], SIZE, inner)
    decode = lambda v, image, points, kinds: SAM.apply(v, label_refiner.encode(SAM, v, image), points, kinds, method="decode")
    logits, iou = (np.asarray(x) for x in jax.jit(decode)(variables, image, points, kinds))
    matrices = masks.full_size_matrices((32, 32), (128, 128), inner, SIZE)
    found = label.copy()
    for n in range(len(label)):
        if count := int(asked.valid[n].sum()):
            best = logits[n, np.arange(count), iou[n, :count].argmax(-1)]
            whole = (np.einsum("yh,nhw->nyw", matrices[0], best) @ matrices[1].T) > 0
            owner = np.max(np.where(whole, np.asarray(asked.label[n, :count])[:, None, None], -1), 0)
            found[n] = np.where(whole.sum(0) == 1, owner, 255)
    return found, np.asarray(asked.valid).sum(1)


def test_one_program_for_any_labels_on_eight_devices_as_by_hand_on_one(weights):
    call = jax.jit(lambda variables, key, *x: label_refiner.refine_labels(SAM, variables, key, *x, **OPTIONS))
    key, (image, label) = jax.random.key(0), batch(8)
    mesh = meshes.make_mesh()
    placed = jax.device_put((weights, key), meshes.replicated(mesh))
    inputs = [jax.device_put(x, meshes.batch_sharding(mesh)) for x in ((image, label), (image, label[::-1].copy()), batch(8, 1))]
    lowered = call.lower(*placed, *inputs[0])
    assert "callback" not in lowered.as_text()
    program = lowered.compile()
    with jax.transfer_guard("disallow"):
        found = [program(*placed, *x) for x in inputs]
    found = jax.device_get(found)
    assert found[0].prompts.tolist() == found[1].prompts.tolist()[::-1]
    want, counts = by_hand(weights, key, image, label)
    got = np.asarray(found[0].label)
    np.testing.assert_array_equal(found[0].prompts, counts)
    assert max(counts) > 4 and min(counts) == 0
    assert (got == want).mean() > 0.9999  # where a logit is 0 but for rounding
    np.testing.assert_array_equal(got[counts == 0], label[counts == 0])
    assert (got[counts > 0] != label[counts > 0]).any((1, 2)).all()
    for n in range(8):
        assert {int(k) for k in found[0].targets.classes[n] if k >= 0} == set(np.unique(label[n])) - {255}


def test_images_are_prepared_as_pil_does():
    """What the network sees: shrunk with averaging, enlarged, padded; within a level of 255 of PIL's whole numbers."""

    class Eye:
        image_size, stretch = 128, False

        def apply(self, variables, x, sizes, method):
            return x, sizes

    for size in ((64, 96), (150, 260), (300, 200)):
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)
        frame, sizes = jax.device_get(jax.jit(lambda x: label_refiner.encode(Eye(), {}, x))(image))
        height, width = masks.fitted(size, 128)
        assert sizes.tolist() == [[height, width]] and frame.shape == (1, 128, 128, 3)
        want = np.asarray(Image.fromarray(image[0]).resize((width, height), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(np.asarray(frame[0, :height, :width]) * 255 - want).max() < 1.05
        assert not frame[0, height:].any() and not frame[0, :, width:].any()


def test_what_cannot_be_is_refused(weights):
    image, label = batch(1)
    key = jax.random.key(0)
    refine = lambda net, variables, image, **told: jax.eval_shape(
        lambda key: label_refiner.refine_labels(net, variables, key, image, label, **OPTIONS, **told), key
    )
    with pytest.raises(ConfigError, match=r"labels \[1, 64, 96\] of images \[1, 64, 95, 3\]"):
        refine(SAM, weights, image[:, :, :-1])
    with pytest.raises(ConfigError, match="give the image, or its features"):
        refine(SAM, weights, None)
    for told, message in ((dict(num_points=7), "7 points a prompt: .* EfficientSam at most 6"), (dict(second_pass=True), "a second pass")):
        with pytest.raises(ConfigError, match=message):
            refine(EfficientSam(), {}, image, **told)


def test_kept_features_a_second_pass_and_efficient_sam_trace(weights):
    """Their shapes; the second pass itself is tested in ops, EfficientSAM in its own test."""
    label, key = batch(2)[1], jax.random.key(0)
    small = EfficientSam(64, 16, 32, 2, 2, 64, 3, 32, decoder_heads=4, decoder_mlp_dim=48, iou_hidden=24)
    for net, variables, told in ((SAM, weights, dict(second_pass=True)), (small, shapes(small), dict(erode=True))):
        side = net.image_size // 16
        features = jax.ShapeDtypeStruct((2, side, side, net.features), jnp.float32)
        refine = lambda v, f, net=net, told=told: label_refiner.refine_labels(net, v, key, None, label, features=f, **OPTIONS, **told)
        found = jax.eval_shape(refine, variables, features)
        assert found.label.shape == (2, *SIZE) and found.targets.masks.shape == (2, *SIZE, 19) and found.prompts.dtype == jnp.int32
