"""The prompts of a promptable segmenter as arrays of one shape: points, boxes as their corners, and slots that hold nothing."""

from collections.abc import Sequence

import numpy as np

PADDING, NOT_A_POINT, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -10, -1, 0, 1, 2, 3
"""Labels of a prompt's slots. PADDING: the slot is not there, nothing attends to it. NOT_A_POINT: the point that SAM appends where there is
no box. TOP_LEFT, BOTTOM_RIGHT: the corners of a box."""


def bucket(count: int, sizes: Sequence[int] = (2, 4, 8, 16, 32, 64)) -> int:
    """The smallest of `sizes` that holds `count`, or the next multiple of the largest: few shapes, so few compilations."""
    return next((size for size in sizes if size >= count), -(-count // sizes[-1]) * sizes[-1])


def pack(
    points: np.ndarray | None = None, labels: np.ndarray | None = None, boxes: np.ndarray | None = None, *, slots: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as (points float32 [...,S,2], labels int32 [...,S]) with S slots each.

    points [...,N,2] as (x, y) in pixels of the image that the network sees, labels [...,N] of them (POSITIVE, NEGATIVE, NOT_A_POINT or
    PADDING), boxes [...,4] as x0, y0, x1, y1. Points alone get one point (0, 0, NOT_A_POINT) more, a box adds its two corners, as in
    `PromptEncoder` of facebookresearch/segment-anything; neither (a mask alone is the prompt) gives no slot at all. slots: fill up with
    PADDING to so many; the slots by themselves otherwise.
    """
    xy, kinds = [], []
    if points is not None and labels is not None:
        xy.append(np.asarray(points, np.float32))
        kinds.append(np.asarray(labels, np.int32))
        if boxes is None:
            xy.append(np.zeros((*xy[0].shape[:-2], 1, 2), np.float32))
            kinds.append(np.full((*kinds[0].shape[:-1], 1), NOT_A_POINT, np.int32))
    if boxes is not None:
        corners = np.asarray(boxes, np.float32)
        xy.append(corners.reshape(*corners.shape[:-1], 2, 2))
        kinds.append(np.broadcast_to(np.array([TOP_LEFT, BOTTOM_RIGHT], np.int32), (*corners.shape[:-1], 2)))
    if not xy:
        return np.zeros((0, 2), np.float32), np.zeros((0,), np.int32)
    points, labels = np.concatenate(xy, -2), np.concatenate(kinds, -1)
    more = 0 if slots is None else slots - labels.shape[-1]
    if more < 0:
        raise ValueError(f"{labels.shape[-1]} slots do not fit into {slots}")
    wide = [(0, 0)] * (labels.ndim - 1)
    return np.pad(points, (*wide, (0, more), (0, 0))), np.pad(labels, (*wide, (0, more)), constant_values=PADDING)
