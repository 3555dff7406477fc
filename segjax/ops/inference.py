"""One answer from several views of an image: scales and mirror images, combined at the size where the answer is wanted."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from segjax.ops.resize import bilinear
from segjax.typing import Array

COMBINE = ("softmax", "logits", "max")


def rescale(image: Array, scale: float) -> Array:
    """uint8 [B,H,W,C] resized bilinearly by `scale`, sizes rounded half up, values rounded to uint8 as a resized file's would be."""
    size = tuple(max(1, int(n * scale + 0.5)) for n in image.shape[1:3])
    resized = bilinear(image.astype(jnp.float32), (size[0], size[1]))
    return jnp.clip(jnp.round(resized), 0, 255).astype(image.dtype)


def combine_views(
    function: Callable[[Array], Array],
    image: Array,
    place: Callable[[Array], Array],
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    combine: str = "softmax",
) -> Array:
    """Class scores of uint8 image [B,H,W,3] from len(scales) views, twice as many with `flip`: place's output shape.

    function: image at any size -> logits at that size. place: logits at any size -> logits where the answer is wanted (a resize).
    combine: "softmax" is the mean of the views' class probabilities (mmseg's aug_test), "logits" the mean of their logits, "max" the
    element-wise largest logit (DiGA: scales 1 and 1/2, no flip). A single view stays logits: their argmax is the same.
    A mirrored view runs the same compiled network; the views follow one another, so memory does not grow with their number.
    """
    if combine not in COMBINE:
        raise ValueError(f"combine={combine!r}: expected one of {', '.join(COMBINE)}")
    if len(scales) * (1 + flip) == 1:
        return place(function(image if scales[0] == 1 else rescale(image, scales[0])))
    join = jnp.maximum if combine == "max" else jnp.add

    def scores(view: Array, mirrored: Array | bool) -> Array:
        turned = lambda x: jnp.where(mirrored, x[:, :, ::-1], x)
        found = place(turned(function(turned(view))))
        return jax.nn.softmax(found, -1) if combine == "softmax" else found

    total = None
    for scale in scales:
        view = image if scale == 1 else rescale(image, scale)
        if flip:
            shape = jax.eval_shape(scores, view, False)
            start = jnp.full(shape.shape, -jnp.inf if combine == "max" else 0, shape.dtype)
            step = lambda sofar, mirrored, view=view: (join(sofar, scores(view, mirrored)), None)
            found, _ = lax.scan(step, start, jnp.array([False, True]))
        else:
            found = scores(view, False)
        total = found if total is None else join(total, found)
    assert total is not None
    return total if combine == "max" else total / (len(scales) * (1 + flip))
