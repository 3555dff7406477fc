"""What turns a segmenter's low-resolution logits into masks: full size, stability, boxes, suppression of overlaps. All shapes static."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.ops.bicubic import bicubic_matrix
from segjax.ops.resize import interpolation_matrix
from segjax.typing import Array


def fitted(size: tuple[int, int], frame: int, *, stretch: bool = False) -> tuple[int, int]:
    """(height, width) of an image of `size` in a square frame: its longest side fills it, int(x * scale + 0.5); stretched, both do."""
    if stretch:
        return frame, frame
    scale = frame / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def to_frame(points: np.ndarray, size: tuple[int, int], inner: tuple[int, int]) -> np.ndarray:
    """Points [...,2] as (x, y) of an image of `size` (height, width) in pixels of its copy of size `inner`, float32."""
    return np.asarray(points, np.float64) * (inner[1] / size[1], inner[0] / size[0])


def full_size_matrices(
    low: tuple[int, int], frame: tuple[int, int], inner: tuple[int, int], size: tuple[int, int], *, stretch: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [H,h], columns [W,w]), float32: low-resolution logits to the image's own size, rows @ logits @ columns^T.

    SAM's way: low -> frame bilinearly, crop to `inner` (what the image fills of it), -> size bilinearly. All three are linear and
    separable, so each axis is one small matrix, and neither the frame nor a crop of it is ever stored. stretch: one bicubic step
    (EfficientSAM).
    Source: `postprocess_masks` in facebookresearch/segment-anything modeling/sam.py.
    """
    matrices = []
    for axis in (0, 1):
        if stretch:
            matrices.append(bicubic_matrix(low[axis], size[axis]))
        else:
            up = interpolation_matrix(low[axis], frame[axis])[: inner[axis]].astype(np.float64)
            matrices.append((interpolation_matrix(inner[axis], size[axis]).astype(np.float64) @ up).astype(np.float32))
    return matrices[0], matrices[1]


def full_size(logits: Array, rows: Array, columns: Array) -> Array:
    """Logits [...,h,w] -> float32 [...,H,W] by `full_size_matrices`."""
    highest = lax.Precision.HIGHEST
    tall = jnp.matmul(rows, logits.astype(jnp.float32), precision=highest)
    return jnp.matmul(tall, jnp.asarray(columns).T, precision=highest)


def enlarged(logits: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """`full_size` by matrices that are known when it is traced: on CPU a row is a sum of the few rows that make it, not a product."""
    there = rows != 0
    first, last = there.argmax(1), rows.shape[1] - 1 - there[:, ::-1].argmax(1)
    reach = int((last - first).max()) + 1
    index = np.minimum(first, rows.shape[1] - reach)[:, None] + np.arange(reach)
    share = np.take_along_axis(rows, index, 1)

    def takes(logits: Array) -> Array:
        wide = jnp.matmul(logits.astype(jnp.float32), jnp.asarray(columns).T, precision=lax.Precision.HIGHEST)
        return sum(jnp.take(wide, index[:, n], -2, mode="clip") * share[:, n, None] for n in range(reach))  # pyright: ignore[reportReturnType]

    return lax.platform_dependent(logits, cpu=takes, default=lambda logits: full_size(logits, jnp.asarray(rows), jnp.asarray(columns)))


def stability_score(logits: Array, *, threshold: float = 0.0, offset: float = 1.0) -> Array:
    """Pixels above threshold + offset per pixel above threshold - offset, of mask logits [...,H,W]: [...] in 0..1, 0 where there is none.

    The IoU of the two masks, as one lies within the other. Source: `calculate_stability_score` in segment-anything utils/amg.py.
    """
    high = jnp.sum(logits > threshold + offset, (-2, -1), dtype=jnp.int32)
    low = jnp.sum(logits > threshold - offset, (-2, -1), dtype=jnp.int32)
    return high / jnp.maximum(low, 1)


def mask_boxes(masks: Array) -> Array:
    """x0, y0, x1, y1 of the first and last column and row of bool masks [...,H,W], int32 [...,4]; zeros for an empty mask."""
    found = []
    for axis in (-2, -1):  # columns, then rows
        line = masks.any(axis)
        length = line.shape[-1]
        first, last = jnp.argmax(line, -1), length - 1 - jnp.argmax(line[..., ::-1], -1)
        found.append((first, last))
    (x0, x1), (y0, y1) = found
    boxes = jnp.stack([x0, y0, x1, y1], -1).astype(jnp.int32)
    return jnp.where(masks.any((-2, -1))[..., None], boxes, 0)


def box_iou(boxes: Array) -> Array:
    """Intersection over union of every two of boxes [N,4] (x0, y0, x1, y1; area (x1 - x0)(y1 - y0)), float32 [N,N]; 0 for empty ones."""
    boxes = boxes.astype(jnp.float32)
    low = jnp.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0.0), -1)
    area = jnp.prod(boxes[:, 2:] - boxes[:, :2], -1)
    union = area[:, None] + area[None] - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1.0), 0.0)


def nms(boxes: Array, scores: Array, valid: Array, threshold: float) -> Array:
    """Which boxes [N,4] greedy non-maximum suppression keeps, bool [N]: from the best score down, a box goes whose IoU with a kept one
    exceeds the threshold. Of equal scores the first wins. Boxes that are not `valid` [N] are never kept and suppress nothing.

    Source: torchvision.ops.nms; here the shapes are static, N * N numbers are stored, and no host is asked.
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    overlaps = box_iou(boxes[order]) > threshold
    place = jnp.arange(boxes.shape[0])

    def visit(i, kept):
        suppressed = jnp.any(kept & overlaps[i] & (place < i))
        return kept.at[i].set(kept[i] & ~suppressed)

    kept = lax.fori_loop(0, boxes.shape[0], visit, valid[order])
    return jnp.zeros_like(kept).at[order].set(kept)


def point_grid(side: int) -> np.ndarray:
    """side * side points (x, y) in the middle of their cells of the unit square, row by row, float64 [side^2,2]."""
    centres = (np.arange(side) + 0.5) / side
    return np.stack([np.tile(centres, side), np.repeat(centres, side)], -1)
