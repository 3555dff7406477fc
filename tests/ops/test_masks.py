"""What turns low-resolution logits into masks, against numpy, torch and closed forms; prompts in one shape; bicubic resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import bicubic, masks, prompts


def test_an_image_in_its_frame():
    assert masks.fitted((90, 121), 128) == (95, 128) and masks.fitted((121, 90), 128) == (128, 95)
    assert masks.fitted((480, 640), 1024) == (768, 1024) and masks.fitted((90, 121), 128, stretch=True) == (128, 128)
    np.testing.assert_allclose(masks.to_frame(np.array([[120.5, 45.0]]), (90, 121), (95, 128)), [[120.5 * 128 / 121, 45 * 95 / 90]])


@pytest.mark.parametrize("size", [(90, 121), (121, 90), (500, 300)])
def test_full_size_equals_torch_in_three_steps(size):
    torch = pytest.importorskip("torch")
    resize = lambda x, size: torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
    logits = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    inner = masks.fitted(size, 128)
    want = resize(resize(torch.from_numpy(logits), (128, 128))[..., : inner[0], : inner[1]], size).numpy()
    matrices = masks.full_size_matrices((32, 32), (128, 128), inner, size)
    got = masks.full_size(jnp.asarray(logits), *matrices)
    assert got.shape == (2, 3, *size)
    np.testing.assert_allclose(masks.enlarged(jnp.asarray(logits), *matrices), got, rtol=0, atol=1e-5)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)  # torch computes positions in float32
    stretched = torch.nn.functional.interpolate(torch.from_numpy(logits), size, mode="bicubic").numpy()
    matrices = masks.full_size_matrices((32, 32), (128, 128), (128, 128), size, stretch=True)
    got = masks.full_size(jnp.asarray(logits), *matrices)
    np.testing.assert_allclose(got, stretched, rtol=0, atol=2e-5)
    np.testing.assert_allclose(masks.enlarged(jnp.asarray(logits), *matrices), got, rtol=0, atol=1e-5)


def test_bicubic_equals_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 14, 14, 5)).astype(np.float32)
    for size in ((64, 64), (9, 20), (14, 14)):
        want = torch.nn.functional.interpolate(torch.from_numpy(x.transpose(0, 3, 1, 2)), size, mode="bicubic").numpy()
        np.testing.assert_allclose(bicubic.bicubic(jnp.asarray(x), size), want.transpose(0, 2, 3, 1), rtol=0, atol=5e-6)


def test_stability_is_the_share_of_sure_pixels():
    logits = np.array([[[-2.0, -0.5, 0.5, 2.0]], [[5.0, 5.0, -5.0, -5.0]], [[-9.0] * 4]])
    np.testing.assert_allclose(masks.stability_score(jnp.asarray(logits)), [1 / 3, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(masks.stability_score(jnp.asarray(logits[0]), threshold=0.5, offset=0.25), 1 / 2)


def test_boxes_of_masks():
    found = np.zeros((3, 9, 12), bool)
    found[0, 2:5, 3:11] = True
    found[1, 8, 0] = True
    assert masks.mask_boxes(jnp.asarray(found)).tolist() == [[3, 2, 10, 4], [0, 8, 0, 8], [0, 0, 0, 0]]


def greedy(boxes, scores, threshold):
    """torchvision's rule, one box at a time."""
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        wide = np.maximum(np.minimum(boxes[i, 2:], boxes[kept, 2:]) - np.maximum(boxes[i, :2], boxes[kept, :2]), 0).prod(-1)
        area = lambda b: (b[..., 2:] - b[..., :2]).prod(-1)
        union = area(boxes[i]) + area(boxes[kept]) - wide
        if not (wide > threshold * np.maximum(union, 1e-9)).any():
            kept.append(i)
    return sorted(kept)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_non_maximum_suppression(threshold):
    rng = np.random.default_rng(1)
    low = rng.integers(0, 30, (30, 2))
    boxes = np.concatenate([low, low + rng.integers(10, 40, (30, 2))], -1).astype(np.float32)
    boxes = np.concatenate([boxes, boxes + rng.integers(0, 3, (30, 4))])  # everything twice, nearly
    scores = rng.integers(0, 20, 60) / 20  # with ties
    valid = rng.random(60) > 0.2
    got = np.flatnonzero(jax.jit(masks.nms)(boxes, scores, valid, threshold))
    index = np.flatnonzero(valid)
    want = index[greedy(boxes[index], scores[index], threshold)]
    assert got.tolist() == want.tolist() and 1 < len(want) < len(index)


def test_the_grid_of_points():
    np.testing.assert_allclose(masks.point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


def test_prompts_in_one_shape():
    points, labels = prompts.pack(np.full((2, 1, 2), 5.0), np.ones((2, 1)), slots=4)
    assert labels.tolist() == [[1, prompts.NOT_A_POINT, prompts.PADDING, prompts.PADDING]] * 2 and points.shape == (2, 4, 2)
    points, labels = prompts.pack(np.full((1, 2), 5.0), np.zeros(1), np.array([1.0, 2, 3, 4]))
    assert labels.tolist() == [0, prompts.TOP_LEFT, prompts.BOTTOM_RIGHT] and points.tolist() == [[5, 5], [1, 2], [3, 4]]
    assert prompts.pack()[1].shape == (0,)
    with pytest.raises(ValueError, match="3 slots do not fit into 2"):
        prompts.pack(np.zeros((2, 2)), np.ones(2), slots=2)
    assert [prompts.bucket(n) for n in (1, 2, 3, 33, 64, 65, 200)] == [2, 2, 4, 64, 64, 128, 256]
