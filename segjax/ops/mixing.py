"""Pictures made of two: masks of whole classes (ClassMix, CrossDoMix) and of blocks (MIC), and the pasting.

Shapes are static: which classes an image holds is a row of booleans, and a random half of them is found by ranking random numbers.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops.resize import nearest
from segjax.typing import Array, Key


def present_classes(label: Array, num_classes: int) -> Array:
    """Which values occur in each label [B,H,W]: bool [B, num_classes + 1], the last for 255 (and any other id that is no class)."""
    return jnp.stack([jnp.any(where, (1, 2)) for where in _where(label, num_classes)], 1)


def choose_half(key: Key, present: Array, rounding: Literal["floor", "ceil"]) -> Array:
    """A random half of each row of bool [B,V], uniform among its subsets of floor(n/2) or ceil(n/2) of the n values present."""
    score = jnp.where(present, jax.random.uniform(key, present.shape), jnp.inf)
    rank = jnp.argsort(jnp.argsort(score, -1), -1)  # twice: equal numbers get different ranks
    count = jnp.sum(present, -1, keepdims=True)
    return present & (rank < (count + (rounding == "ceil")) // 2)


def classes_mask(label: Array, chosen: Array) -> Array:
    """The pixels whose value is chosen, bool [B,H,W]: label [B,H,W], chosen bool [B, num_classes + 1] in `present_classes`' order."""
    mask = jnp.zeros(label.shape, bool)
    for value, where in enumerate(_where(label, chosen.shape[-1] - 1)):
        mask |= where & chosen[:, value, None, None]
    return mask


def class_mix_mask(
    key: Key, label: Array, num_classes: int, *, pool: Literal["image", "batch"] = "image", ignored: Literal["value", "never"] = "value"
) -> Array:
    """The pixels of a random half of the classes, rounded up: bool [B,H,W] for label [B,H,W]. What DACS pastes onto the target.

    pool "image": half of each image's own values (DACS, vikolss/DACS trainUDA.py). "batch": half of those of the whole batch, drawn for
    each image; most of them are not in it, and some images give nothing (DAFormer, HRDA and MIC do so, unintended and kept:
    mmseg/models/utils/dacs_transforms.py, get_class_masks).
    ignored "value": 255 is one of the values and may be drawn, as in both codes. "never" (not in the codes): it neither counts nor goes.
    """
    if pool not in ("image", "batch") or ignored not in ("value", "never"):
        raise ConfigError(f"pool={pool!r}, ignored={ignored!r}: expected pool 'image' or 'batch', ignored 'value' or 'never'")
    present = present_classes(label, num_classes)
    if ignored == "never":
        present = present.at[:, -1].set(False)
    if pool == "batch":
        present = jnp.broadcast_to(jnp.any(present, 0, keepdims=True), present.shape)
    return classes_mask(label, choose_half(key, present, "ceil"))


def cross_domix_mask(key: Key, label: Array, num_classes: int) -> Array:
    """The pixels of floor(n/2) of each image's n values, 255 among them, and of 255 always: bool [B,H,W] for label [B,H,W].

    Where it is True DiGA shows the photometric view of the source, elsewhere the translated one; and in self-training it pastes the
    source onto the target. Source: train_DiGA_gta2city_warm_up.py and _self_training.py (fy-vision/DiGA, GTA5).
    """
    chosen = choose_half(key, present_classes(label, num_classes), "floor")
    return classes_mask(label, chosen.at[:, -1].set(True))


def paste(mask: Array, front: Array, back: Array) -> Array:
    """front where mask, else back: mask bool [B,H,W] on images [B,H,W,C], labels or weights [B,H,W]; either side may be broadcast."""
    rank = max(jnp.ndim(front), jnp.ndim(back), mask.ndim)
    return jnp.where(mask.reshape(mask.shape + (1,) * (rank - mask.ndim)), front, back)


def block_mask(key: Key, batch: int, size: tuple[int, int], *, block: int, ratio: float) -> Array:
    """MIC's mask, bool [batch, *size]: each block x block square is hidden (False) with probability `ratio`, each image by itself.

    The image gets round(side / block) squares an axis, so their real size differs a little where the side is no multiple. MIC hides 0.7;
    block 64 for 1024 crops (HRDA), 32 for 512 crops. Hidden pixels take the mean colour: `paste(mask, image, mean)`.
    Source: BlockMaskGenerator of lhoyer/MIC, mmseg/models/utils/masking_transforms.py.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio={ratio}: expected 0 (nothing hidden) to 1")
    return blocks_from(jax.random.uniform(key, (batch, *block_grid(size, block))), size, ratio)


def block_grid(size: tuple[int, int], block: int) -> tuple[int, int]:
    """Squares along each axis: round(side / block), half to even."""
    rows, columns = (round(side / block) for side in size) if block >= 1 else (0, 0)
    if rows < 1 or columns < 1:
        raise ConfigError(f"block={block} on a {size[0]}x{size[1]} picture: expected at least 1 and less than twice the shorter side")
    return rows, columns


def blocks_from(uniform: Array, size: tuple[int, int], ratio: float) -> Array:
    """One random number a square, [B,rows,columns] in 0..1, as a mask bool [B,*size]: True where it exceeds `ratio`."""
    return nearest(uniform > ratio, size)


def _where(label: Array, num_classes: int) -> list[Array]:
    """One bool [B,H,W] a class, and one for what is none (255)."""
    return [*(label == k for k in range(num_classes)), (label < 0) | (label >= num_classes)]
