"""SAM bound to the refinement, on MobileSAM's tiny weights: one program for any number of components, one device as eight, no host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import Golden
from PIL import Image

from segjax.errors import ConfigError
from segjax.nets import label_refiner
from segjax.nets.efficient_sam import EfficientSam
from segjax.ops import masks, prompts, sam_refine
from segjax.runtime import mesh as meshes

OPTIONS = dict(num_classes=19, min_area=300, places=6, chunk=2)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def mobile(goldens):
    golden = Golden(goldens / "mobile_sam/mobile_sam.pt")
    net = golden.net(decoder_heads=4, image_size=128)
    return net, golden.variables(net)


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


def test_one_program_for_any_labels_on_one_device_and_on_eight(mobile):
    net, variables = mobile
    call = jax.jit(lambda variables, key, *x: label_refiner.refine_labels(net, variables, key, *x, **OPTIONS))
    key, (image, label) = jax.random.key(0), batch(8)
    mesh = meshes.make_mesh()
    everywhere, rows = meshes.replicated(mesh), meshes.batch_sharding(mesh)
    placed = jax.device_put((variables, key), everywhere)
    inputs = [jax.device_put(x, rows) for x in ((image, label), (image, label[::-1].copy()), batch(8, 1))]
    with jax.transfer_guard("disallow"):
        found = [call(*placed, *x) for x in inputs]
    assert call._cache_size() == 1
    assert found[0].prompts.tolist() == found[1].prompts.tolist()[::-1] and max(found[0].prompts) > 4 and 0 in found[0].prompts
    alone = call(variables, key, image, label)
    assert (np.asarray(alone.label) == found[0].label).mean() > 0.9999
    np.testing.assert_array_equal(alone.targets.classes, found[0].targets.classes)
    np.testing.assert_array_equal(alone.prompts, found[0].prompts)
    unprompted = np.asarray(alone.prompts) == 0
    np.testing.assert_array_equal(np.asarray(alone.label)[unprompted], label[unprompted])
    assert (np.asarray(alone.label)[~unprompted] != label[~unprompted]).any((1, 2)).all()
    assert "callback" not in call.lower(variables, key, image, label).as_text()

    # the image with most prompts by hand: every prompt decoded by itself, all in numpy after that
    asked = jax.jit(lambda key, x: sam_refine.component_prompts(key, x, num_classes=19, min_area=300, places=6))(key, label)
    n = int(np.argmax(alone.prompts))
    count, inner = int(alone.prompts[n]), masks.fitted(SIZE, 128)
    points, kinds = prompts.pack(np.asarray(asked.points[n, :count]), np.ones((count, 5), np.int32))
    points[:, :5] = masks.to_frame(points[:, :5], SIZE, inner)
    decode = lambda v, image, points, kinds: net.apply(v, label_refiner.encode(net, v, image), points, kinds, method="decode")
    logits, iou = jax.jit(decode)(variables, image[n : n + 1], points[None], kinds[None])
    best = np.asarray(logits)[0, np.arange(count), np.asarray(iou)[0].argmax(-1)]
    whole = np.asarray(masks.full_size(best, *masks.full_size_matrices((32, 32), (128, 128), inner, SIZE))) > 0
    owner = np.max(np.where(whole, np.asarray(asked.label[n, :count])[:, None, None], -1), 0)
    want = np.where(whole.sum(0) == 1, owner, 255)
    assert (alone.label[n] == want).mean() > 0.999


def test_images_are_prepared_as_pil_does():
    """What the network sees: shrunk with averaging, enlarged, padded; within a level of 255 of PIL's whole numbers."""

    class Eye:
        image_size, stretch = 128, False

        def apply(self, variables, x, sizes, method):
            return x, sizes

    for size in ((64, 96), (150, 260), (300, 200)):
        image = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype(np.uint8)
        frame, sizes = label_refiner.encode(Eye(), {}, jnp.asarray(image))
        height, width = masks.fitted(size, 128)
        assert sizes.tolist() == [[height, width]] and frame.shape == (1, 128, 128, 3)
        want = np.asarray(Image.fromarray(image[0]).resize((width, height), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(np.asarray(frame[0, :height, :width]) * 255 - want).max() < 1.05
        assert not frame[0, height:].any() and not frame[0, :, width:].any()


def test_what_cannot_be_is_refused(mobile):
    net, variables = mobile
    image, label = batch(1)
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match=r"labels \[1, 64, 96\] of images \[1, 64, 95, 3\]"):
        label_refiner.refine_labels(net, variables, key, image[:, :, :-1], label, **OPTIONS)
    with pytest.raises(ConfigError, match="give the image, or its features"):
        label_refiner.refine_labels(net, variables, key, None, label, **OPTIONS)
    for told, message in ((dict(num_points=7), "7 points a prompt: .* EfficientSam at most 6"), (dict(second_pass=True), "a second pass")):
        with pytest.raises(ConfigError, match=message):
            label_refiner.refine_labels(EfficientSam(), {}, key, image, label, **OPTIONS, **told)
