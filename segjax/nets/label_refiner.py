"""Pseudo-labels refined by SAM, MobileSAM or EfficientSAM inside a compiled step: `ops.sam_refine` with a network bound to it.

refined = refine_labels(module, variables, key, image, label, num_classes=19)    # under jit: no array leaves the device
"""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops import masks, resize, sam_refine
from segjax.ops.sam_refine import MIN_AREA, NUM_POINTS, Refined
from segjax.typing import Array, Key


def encode(module: Any, variables: Any, image: Array) -> Array:
    """Features [B,h,w,C] of RGB images uint8 [B,H,W,3]: the longest side is resized to the frame, or the image stretched to it.

    Differs from the original by the resized image not being rounded to whole numbers (PIL's is): at most half a level of 255.
    """
    batch, size, side = image.shape[0], (image.shape[1], image.shape[2]), module.image_size
    inner = masks.fitted(size, side, stretch=module.stretch)
    x = image.astype(jnp.float32) / 255
    if module.stretch:
        x = resize.bilinear(x, (side, side))
    else:
        x = jax.image.resize(x, (batch, *inner, 3), "linear", antialias=True)  # PIL's bilinear: it averages when it shrinks
        x = jnp.pad(x, ((0, 0), (0, side - inner[0]), (0, side - inner[1]), (0, 0)))
    return module.apply(variables, x, jnp.broadcast_to(jnp.asarray(inner, jnp.int32), (batch, 2)), method="encode")


def refine_labels(
    module: Any,
    variables: Any,
    key: Key,
    image: Array | None,
    label: Array,
    *,
    num_classes: int,
    features: Array | None = None,
    min_area: int = MIN_AREA,
    num_points: int = NUM_POINTS,
    places: int | None = None,
    erode: bool = False,
    chunk: int = 4,
    remove_overlaps: bool = True,
    second_pass: bool = False,
) -> Refined:
    """label int [B,H,W] (255: unknown) of RGB images uint8 [B,H,W,3], refined (`ops.sam_refine`). No gradient.

    key: one, or one for each image [B]. module: `nets.sam.Sam`, `MobileSam` or `EfficientSam`. features: of `encode`, where they are kept;
    the image is not read then. chunk: prompts of an image that are decoded at a time. min_area is in pixels of the label (CLOUDS: 5000 of
    768 x 768).
    ConfigError: an image of another size than its label, more points than the network takes, a second pass by EfficientSAM.
    """
    size = label.shape[1], label.shape[2]
    variables = jax.tree.map(jnp.asarray, variables)  # numpy's would be constants inside of a loop, which jax does not take
    check(module, num_points, second_pass)
    if image is not None and image.shape[:3] != label.shape:
        raise ConfigError(f"labels {list(label.shape)} of images {list(image.shape)}: expected one size")
    if features is None:
        if image is None:
            raise ConfigError("refine_labels: give the image, or its features")
        features = encode(module, variables, image)
    side = module.image_size
    inner = masks.fitted(size, side, stretch=module.stretch)
    scale = jnp.asarray([inner[1] / size[1], inner[0] / size[0]], jnp.float32)

    def decode(points: Array, kinds: Array, logits: Array | None) -> tuple[Array, Array]:
        return module.apply(variables, features, points * scale, kinds, logits, method="decode", multimask=True)

    low = 4 * features.shape[1], 4 * features.shape[2]
    rows, columns = map(jnp.asarray, masks.full_size_matrices(low, (side, side), inner, size, stretch=module.stretch))
    prompts = sam_refine.component_prompts(
        key, label, num_classes=num_classes, min_area=min_area, num_points=num_points, places=places, erode=erode
    )
    return sam_refine.refine(
        label,
        prompts,
        decode,
        lambda logits: masks.full_size(logits, rows, columns),
        num_classes=num_classes,
        chunk=min(chunk, prompts.valid.shape[1]),
        remove_overlaps=remove_overlaps,
        second_pass=second_pass,
        max_slots=module.max_slots,
    )


def check(module: Any, num_points: int, second_pass: bool) -> None:
    """ConfigError for what a network cannot be asked."""
    name = type(module).__name__
    if num_points < 1 or (module.max_slots is not None and num_points > module.max_slots):
        raise ConfigError(f"{num_points} points a prompt: expected 1 or more, and for {name} at most {module.max_slots or 'any number'}")
    if second_pass and module.max_slots is not None:
        raise ConfigError(f"a second pass gives the network its own masks as prompts, which {name} does not take: use SAM or MobileSAM")
