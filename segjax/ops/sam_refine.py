"""CLOUDS' refinement of pseudo-labels by a promptable segmenter (Benigmim et al., CVPR 2024, arXiv 2312.09788), on the device throughout.

Every large component of every class becomes a prompt of a few of its pixels, the segmenter answers each with a mask, and the masks become
the label: pixels that several masks claim belong to none, and an image without a prompt keeps its label as it is. The segmenter comes as
a function, so that nothing here knows which it is. Images wait in queues; the decoder runs on `chunk` prompts of one image of each queue at
a time, until the longest queue is through: the number of prompts is data, not shape, and what is not there is hardly paid for.
Source: yasserben/CLOUDS clouds/clouds.py and my_utils/mask_utils.py. Here one draw of pixels serves all components at once.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops import component_pixels, components, mask_claims
from segjax.ops.mask_claims import Claims, claimed, no_claims
from segjax.ops.mask_losses import Targets
from segjax.ops.prompts import NOT_A_POINT, PADDING, POSITIVE
from segjax.typing import Array, Key

MIN_AREA, NUM_POINTS = 5000, 5

Decode: TypeAlias = Callable[[Array, Array, Array, Array | None], Array]
"""(image int [Q]: which of its queue each is, points [Q,n,S,2] in pixels of the label map, labels [Q,n,S] of `ops.prompts`, mask logits
[Q,n,h,w] or None) -> mask logits [Q,n,h,w], of the masks that a network has for a prompt the one of highest predicted IoU."""


class Prompts(NamedTuple):
    """points float32 [B,M,N,2], (x, y) in pixels; label int32 [B,M], the class; valid bool [B,M], the valid ones first."""

    points: Array
    label: Array
    valid: Array


class Refined(NamedTuple):
    """label uint8 [B,H,W]: the refined map, IGNORE where no mask is (of several masks the highest class). targets: the masks that a
    mask-classification network learns from, K = num_classes, one for each class that has a prompt even if nothing is left of it.
    prompts int32 [B]: how many an image had; 0: it kept its label."""

    label: Array
    targets: Targets
    prompts: Array


def component_prompts(
    key: Key,
    label: Array,
    *,
    num_classes: int,
    min_area: int = MIN_AREA,
    num_points: int = NUM_POINTS,
    places: int | None = None,
    erode: bool = False,
) -> Prompts:
    """`num_points` random pixels of every component of more than `min_area` pixels, by class and then by first pixel.

    label int [B,H,W]; ids outside 0..num_classes-1 (255) prompt for nothing. key: one, or one for each image [B]. places: M, by default as
    many components as there can be; beyond that the largest. erode: draw from each component's inside (3x3 erosion; at the image's border,
    too). A component with fewer pixels than points gives no prompt. The original's other ways of drawing ("center", "largest_component"),
    which its configurations do not use, are left out.
    """
    found = components.kept(label, min_area=min_area, num_classes=num_classes, places=places)
    count = found.valid.shape[1]
    place = component_pixels.eroded(found.place, count) if erode else found.place
    pixels, enough = component_pixels.random_pixels(key, place, count, num_points)
    valid = found.valid & enough
    first = jnp.argsort(~valid, 1, stable=True)
    prompts = Prompts(to_points(pixels, label.shape[2]), found.label, valid)
    return Prompts(*(jnp.take_along_axis(x, first.reshape(*first.shape, *(1,) * (x.ndim - 2)), 1) for x in prompts))


def to_points(pixels: Array, width: int) -> Array:
    """row * W + column [...] -> (x, y) float32 [...,2]."""
    return jnp.stack([pixels % width, pixels // width], -1).astype(jnp.float32)


def slots(prompts: Prompts, most: int | None = None) -> tuple[Array, Array]:
    """(points [B,M,S,2], labels [B,M,S]) as a segmenter takes them: positive points and the one that SAM appends where there is no box.

    Absent prompts are PADDING throughout. most: how many slots there may be; the appended one is left out where it does not fit, then
    the last points.
    """
    batch, places, count, _ = prompts.points.shape
    points = jnp.pad(prompts.points, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, :most]
    kinds = jnp.asarray(np.array([POSITIVE] * count + [NOT_A_POINT], np.int32)[:most])
    return points, jnp.where(prompts.valid[..., None], kinds, PADDING)


def refine(
    label: Array,
    prompts: Prompts,
    decode: Decode,
    enlarge: mask_claims.Enlarge,
    *,
    num_classes: int,
    chunk: int = 4,
    queues: int = 1,
    remove_overlaps: bool = True,
    second_pass: bool = False,
    max_slots: int | None = None,
) -> Refined:
    """The label map that the segmenter makes of label int [B,H,W] and its prompts. No gradient.

    queues: Q, a divisor of B; a queue is B / Q images that follow each other. One queue decodes least in vain; a batch that lies on D
    devices wants D of them, for what an image needs must be where it is.

    Of a prompt's masks the one with the highest predicted IoU counts. remove_overlaps: pixels of several masks, also of one class, belong
    to none. second_pass: the best mask's logits go back in as a mask prompt. max_slots: of the segmenter, if it has a limit.
    """
    points, kinds = slots(prompts, max_slots)
    more = -points.shape[1] % chunk
    fill = lambda x, value: jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value)
    queued = lambda x: x.reshape(queues, -1, *x.shape[1:])
    parts = fill(points, 0), fill(kinds, PADDING), fill(prompts.label, 0), fill(prompts.valid, False)
    parts = tuple(queued(x) for x in parts)
    turns = -(-queued(jnp.sum(prompts.valid, 1, dtype=jnp.int32)) // chunk)
    until = jnp.cumsum(turns, 1)

    def decoded(state: tuple[Array, Claims]) -> tuple[Array, Claims]:
        """All turns until a queue comes to its next image: what does not depend on a prompt is computed before the first of them."""
        turn, claims = state
        image = jnp.minimum(jnp.sum(until <= turn, 1), until.shape[1] - 1)
        first, last = (jnp.take_along_axis(x, image[:, None], 1)[:, 0] for x in (until - turns, until))
        busy = turn < until[:, -1]
        stop = jnp.where(busy, last, until.max()).min()

        def step(state: tuple[Array, Claims]) -> tuple[Array, Claims]:
            turn, own = state
            place = jnp.minimum((turn - first) * chunk, parts[0].shape[2] - chunk)
            cut = lambda x, n, start: lax.dynamic_slice_in_dim(x[n], start, chunk, 0)
            points, kinds, classes, valid = (jax.vmap(cut)(x, image, place) for x in parts)
            best = decode(image, points, kinds, None)
            if second_pass:
                best = decode(image, points, kinds, best)
            return turn + 1, claimed(own, enlarge, best, classes, valid & busy[:, None])

        own = jax.tree.map(lambda x: chosen(x, image), claims)
        turn, own = lax.while_loop(lambda state: state[0] < stop, step, (turn, own))
        return turn, jax.tree.map(lambda x, new: _replaced(x, image, new), claims, own)

    start = jnp.int32(0), jax.tree.map(queued, no_claims(label.shape, num_classes))
    _, claims = lax.while_loop(lambda state: state[0] < until[:, -1].max(), decoded, start)
    return combined(label, jax.tree.map(lambda x: x.reshape(label.shape), claims), prompts, num_classes, remove_overlaps)


def chosen(x: Array, image: Array) -> Array:
    """Of each queue's images [Q,I,...] the one with that number, int [Q]: [Q,...]."""
    if x.shape[1] == 1:
        return x[:, 0]
    if len(x) == 1:  # a slice, where several queues need a gather
        return lax.dynamic_index_in_dim(x, image[0], 1, keepdims=False)
    return jax.vmap(lambda x, n: lax.dynamic_index_in_dim(x, n, 0, keepdims=False))(x, image)


def _replaced(x: Array, image: Array, new: Array) -> Array:
    """x with `new` in those places: the inverse of `chosen`."""
    if x.shape[1] == 1:
        return new[:, None]
    if len(x) == 1:
        return lax.dynamic_update_index_in_dim(x, new, image[0], 1)
    return jax.vmap(lambda x, n, new: lax.dynamic_update_index_in_dim(x, new, n, 0))(x, image, new)


def combined(label: Array, claims: Claims, prompts: Prompts, num_classes: int, remove_overlaps: bool) -> Refined:
    """The refined map and masks of all claims; the label itself for an image without prompts."""
    prompted = prompts.valid.any(1)
    claimed_once = (claims.count == 1) | (not remove_overlaps)
    own, of_masks = mask_claims.of_label(label, num_classes), [jnp.where(claimed_once, word, 0) for word in claims.classes]
    words = [jnp.where(prompted[:, None, None], *pair) for pair in zip(of_masks, own, strict=True)]
    asked = jnp.any((prompts.label[..., None] == jnp.arange(num_classes)) & prompts.valid[..., None], 1)
    left = mask_claims.by_class([lax.reduce(word, jnp.uint32(0), lax.bitwise_or, (1, 2)) for word in words], num_classes)
    classes = jnp.where(jnp.where(prompted[:, None], asked, left), jnp.arange(num_classes), -1)
    targets = Targets(mask_claims.by_class(words, num_classes), classes.astype(jnp.int32))
    return jax.tree.map(lax.stop_gradient, Refined(mask_claims.highest(words), targets, jnp.sum(prompts.valid, 1, dtype=jnp.int32)))
