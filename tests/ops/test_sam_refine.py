"""The refinement of pseudo-labels against the original's numbers, and with a segmenter that draws squares around its points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import masks, prompts, sam_refine
from segjax.ops.sam_refine import Prompts

SIZE = (48, 64)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_become_the_originals_classes(goldens, seed):
    raw = np.load(goldens / f"09b_clouds_combine_s{seed}.npz")
    height, width = (int(x) for x in raw["par_hw"])
    found = np.unpackbits(raw["in_masks"], axis=-1)[..., :width].astype(np.float32) - 0.5
    best = found[np.arange(len(found)), raw["in_iou"].argmax(1)]  # as `nets.sam_decoder` chooses
    np.testing.assert_array_equal(best > 0, raw["out_best"])
    classes = np.repeat(raw["in_class"], raw["in_count"]).astype(np.int32)
    given = Prompts(np.zeros((1, len(classes), 5, 2), np.float32), classes[None], np.ones((1, len(classes)), bool))
    label = np.zeros((1, height, width), np.uint8)

    @functools.partial(jax.jit, static_argnames="remove")
    def run(best, remove):
        claims = sam_refine.claimed(sam_refine.no_claims(label.shape, 19), lambda x: x, best[None], given.label, given.valid)
        return sam_refine.combined(label, claims, given, 19, remove)

    for remove, name in ((True, "rm"), (False, "keep")):
        refined = jax.device_get(run(best, remove))
        there = np.flatnonzero(refined.targets.classes[0] >= 0)
        np.testing.assert_array_equal(there, np.sort(raw[f"out_{name}_labels"]))
        order = np.argsort(raw[f"out_{name}_labels"])
        got = np.moveaxis(np.asarray(refined.targets.masks[0]), -1, 0)
        np.testing.assert_array_equal(got[there], raw[f"out_{name}_class_masks"][order])
        assert not got[np.setdiff1d(np.arange(19), there)].any()
        if (np.diff(raw["in_class"]) > 0).all():
            union = raw[f"out_{name}_union"]
            np.testing.assert_array_equal(refined.label[0], np.where(union == 19, 255, union))


def test_points_are_scaled_as_the_originals(goldens):
    raw = np.load(goldens / "09a_clouds_points_s0.npz")
    np.testing.assert_allclose(masks.to_frame(raw["out_points"], (768, 768), (1024, 1024)), raw["out_points_sam"], atol=1e-3)


def squares(image, points, kinds, logits):
    """A mask at half the size, of 8 pixels around the mean of the positive points. A mask prompt moves it to where that mask is, one pixel
    to the right."""
    there = (kinds == prompts.POSITIVE)[..., None]
    centre = jnp.sum(points * there, 2) / jnp.maximum(jnp.sum(there, 2), 1) / 2
    y, x = jnp.arange(SIZE[0] // 2)[:, None], jnp.arange(SIZE[1] // 2)
    away = jnp.maximum(jnp.abs(x - centre[..., :1, None]), jnp.abs(y - centre[..., 1:, None]))
    return 8.0 - away if logits is None else jnp.roll(logits, 1, -1)


def enlarge(logits):
    return jnp.repeat(jnp.repeat(logits, 2, -2), 2, -1)


ask = jax.jit(functools.partial(sam_refine.component_prompts, num_classes=100, min_area=20, places=12))


@functools.partial(jax.jit, static_argnames=("classes", "options"))
def answer(label, asked, classes, options):
    return sam_refine.refine(label, asked, squares, enlarge, num_classes=classes, **dict(options))


def run(key, label, classes=19, options=()):
    asked = ask(key, label)
    return jax.device_get((asked, answer(label, asked, classes, options)))


def labels():
    """Nothing that is large, one component, several of several classes, one class twice, ignored pixels."""
    found = np.full((4, *SIZE), 255, np.uint8)
    found[0, ::2, ::2] = 3
    found[1, 5:15, 5:15] = 7
    found[2, 2:9, 2:9], found[2, 20:40, 2:20], found[2, 20:40, 20:30], found[2, 0:10, 50:60] = 1, 2, 18, 1
    found[3, 10:20, 10:20], found[3, 14:24, 28:38], found[3, 40:44, 40:44] = 4, 4, 5  # the last has 16 pixels
    return found


def by_hand(asked, label, remove=True):
    """One image's refined label by loops in numpy."""
    valid = np.flatnonzero(asked.valid)
    if not len(valid):
        return label
    count, owner = np.zeros(SIZE, int), np.full(SIZE, -1)
    for n in valid:
        centre = np.asarray(asked.points[n]).mean(0) / 2
        y, x = np.mgrid[: SIZE[0] // 2, : SIZE[1] // 2]
        mask = np.repeat(np.repeat(np.maximum(abs(x - centre[0]), abs(y - centre[1])) < 8, 2, 0), 2, 1)
        count += mask
        owner[mask] = np.maximum(owner[mask], int(asked.label[n]))
    return np.where((count == 1) if remove else (count > 0), owner, 255)


def test_prompts_masks_and_what_is_left():
    label = labels()
    asked, refined = run(jax.random.key(0), label)
    assert refined.prompts.tolist() == [0, 1, 4, 2] and asked.valid.sum(1).tolist() == [0, 1, 4, 2]
    assert asked.label[2, :4].tolist() == [1, 1, 2, 18]
    for b in range(4):
        for n in np.flatnonzero(asked.valid[b]):
            x, y = np.asarray(asked.points[b, n], int).T
            assert (label[b, y, x] == asked.label[b, n]).all() and len(set(zip(x, y, strict=True))) == 5
        one = jax.tree.map(lambda x, b=b: np.asarray(x[b]), (asked, refined))
        np.testing.assert_array_equal(one[1].label, by_hand(one[0], label[b]))
        present = set(np.unique(one[1].label)) - {255}
        assert present <= {int(c) for c in one[1].targets.classes if c >= 0}
        np.testing.assert_array_equal(np.argmax(one[1].targets.masks, -1)[one[1].label < 255], one[1].label[one[1].label < 255])
    assert refined.targets.classes[0, 3] == 3 and (refined.label[0] == label[0]).all()
    kept = run(jax.random.key(0), label, options=(("remove_overlaps", False),))[1]
    np.testing.assert_array_equal(kept.label[3], by_hand(jax.tree.map(lambda x: x[3], asked), label[3], remove=False))
    assert (kept.label[2] < 255).sum() > (refined.label[2] < 255).sum()


def test_one_trace_whatever_the_number_of_components_and_any_chunk():
    label, before = labels(), [ask._cache_size(), answer._cache_size()]
    wanted = [run(jax.random.key(1), x)[1] for x in (label, label[::-1].copy(), np.zeros_like(label))]
    assert ask._cache_size() - before[0] <= 1 and answer._cache_size() - before[1] <= 1
    assert [x.prompts.tolist() for x in wanted] == [[0, 1, 4, 2], [2, 4, 1, 0], [1, 1, 1, 1]]
    small = run(jax.random.key(1), label, options=(("chunk", 3),))[1]
    jax.tree.map(np.testing.assert_array_equal, small, wanted[0])


def test_a_second_pass_gets_the_best_mask():
    asked, once = run(jax.random.key(2), labels())
    twice = run(jax.random.key(2), labels(), options=(("second_pass", True),))[1]
    np.testing.assert_array_equal(twice.label[1, :, 2:], once.label[1, :, :-2])  # moved by one pixel of half the size


def test_any_number_of_queues():
    """The segmenter has something of each image's own: how far its squares reach."""
    label, reach = labels(), np.array([0.0, 3.0, -2.0, 1.0], np.float32)
    asked = ask(jax.random.key(4), label)

    @functools.partial(jax.jit, static_argnames="queues")
    def run(label, asked, queues):
        def decode(image, *prompt):
            return squares(image, *prompt) + sam_refine.chosen(jnp.asarray(reach).reshape(queues, -1), image)[:, None, None, None]

        return sam_refine.refine(label, asked, decode, enlarge, num_classes=19, chunk=2, queues=queues)

    one, two, four, plain = jax.device_get([*(run(label, asked, queues) for queues in (1, 2, 4)), answer(label, asked, 19, ())])
    assert (one.label[1] == 7).sum() > (plain.label[1] == 7).sum() and (one.label[2] == 18).sum() < (plain.label[2] == 18).sum()
    for other in (two, four):
        jax.tree.map(np.testing.assert_array_equal, other, one)


def test_more_than_32_classes():
    label = labels()
    more = np.where(label == 255, 255, label.astype(int) * 5).astype(np.uint8)
    few, many = (run(jax.random.key(3), x, classes=k)[1] for x, k in ((label, 19), (more, 100)))
    np.testing.assert_array_equal(np.where(few.label == 255, 255, few.label.astype(int) * 5), many.label)
    assert many.targets.masks.shape[-1] == 100


def test_slots_of_a_prompt():
    asked = Prompts(np.ones((1, 2, 5, 2), np.float32), np.zeros((1, 2), np.int32), np.array([[True, False]]))
    for most, want in ((None, [1] * 5 + [-1]), (6, [1] * 5 + [-1]), (5, [1] * 5)):
        points, kinds = sam_refine.slots(asked, most)
        assert kinds.tolist() == [[want, [prompts.PADDING] * len(want)]] and points.shape == (1, 2, len(want), 2)
