"""What a student of self-training learns from beside the source: pictures made of both domains or with hidden blocks, labels, weights."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops import mixing
from segjax.ops.photometric_views import strong_view
from segjax.typing import Array, Key

MEAN_COLOUR = (0.485, 0.456, 0.406)
"""What hidden pixels show: 0 after ImageNet's normalisation."""
MASKED = ("target", "half")


class Labelled(NamedTuple):
    """Float images [B,H,W,3] in 0..1, labels uint8 [B,H,W] with 255 = ignore, and how much each pixel counts, float32 [B,H,W]."""

    image: Array
    label: Array
    weight: Array


def class_mix(
    key: Key,
    source: Labelled,
    target: Labelled,
    num_classes: int,
    *,
    pool: Literal["image", "batch"] = "image",
    ignored: Literal["value", "never"] = "value",
    view: dict[str, Any] | None = None,
) -> Labelled:
    """Half of the source's classes on the target, then the photometric `view` (settings of `strong_view`) of the mixture.

    pool, ignored: `mixing.class_mix_mask`. target.label: the teacher's. Source: DACS, and dacs.py in lhoyer/DAFormer.
    """
    mask_key, view_key = jax.random.split(key)
    mask = mixing.class_mix_mask(mask_key, source.label, num_classes, pool=pool, ignored=ignored)
    image, label, weight = (mixing.paste(mask, front, back) for front, back in zip(source, target, strict=True))
    return Labelled(strong_view(view_key, image, **(view or {})), label, weight)


def masked(
    key: Key,
    source: Labelled,
    target: Labelled,
    *,
    block: int,
    ratio: float,
    images: str = "target",
    view: dict[str, Any] | None = None,
) -> Labelled:
    """Pictures with hidden blocks, of which the student should still say what the teacher says of the whole: masked image consistency.

    images "target": all target images, after the photometric `view` (MIC's separatetrgaug); "half": every other one, and source images with
    their truth between them, without a view (MIC's separate, for ACDC and Dark Zurich; there the first of each kind, of a batch of two).
    Source: masking_consistency_module.py in lhoyer/MIC.
    """
    if images not in MASKED:
        raise ConfigError(f"method.mask_images={images!r}: expected {' or '.join(map(repr, MASKED))}")
    view_key, mask_key = jax.random.split(key)
    if images == "half":
        rows = jnp.arange(source.label.shape[0]) % 2 == 0
        target = Labelled(*(mixing.paste(rows, front, back) for front, back in zip(source, target, strict=True)))
    else:
        target = target._replace(image=strong_view(view_key, target.image, **(view or {})))
    size = target.label.shape[1], target.label.shape[2]
    shown = mixing.block_mask(mask_key, target.label.shape[0], size, block=block, ratio=ratio)
    return target._replace(image=mixing.paste(shown, target.image, jnp.asarray(MEAN_COLOUR, target.image.dtype)))


def packed(lessons: dict[str, Labelled]) -> dict[str, Array]:
    """A step's inputs: "views" [B,V,H,W,3], the pictures of all lessons side by side, and for each its NAME_label and NAME_weight."""
    inputs = {"views": jnp.stack([part.image for part in lessons.values()], 1)}
    for name, part in lessons.items():
        inputs |= {f"{name}_label": part.label, f"{name}_weight": part.weight}
    return inputs
