"""SAM's automatic masks: a grid of points over an image (and over crops of it), the good masks kept, overlapping ones dropped.

Source: `SamAutomaticMaskGenerator` in facebookresearch/segment-anything automatic_mask_generator.py and utils/amg.py.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from segjax.ops import masks as mask_ops
from segjax.ops import prompts
from segjax.verbs.segmenter import Segmenter

_EDGE = 20
"""A box within so many pixels of an edge of its crop is taken for cut off."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The generator's, with its defaults. Thresholds: predicted IoU, stability at logits +-stability_offset, IoU of boxes."""

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou: float = 0.88
    stability: float = 0.95
    stability_offset: float = 1.0
    box_nms: float = 0.7
    crop_nms: float = 0.7
    crop_layers: int = 0
    crop_overlap: float = 512 / 1500
    min_region_area: int = 0


@dataclasses.dataclass
class Found:
    """Masks of one image, N of them: predicted IoU, stability, box x0 y0 x1 y1, the point asked at, all in the image's pixels; and what
    makes the mask: its crop's index and its logits [h,w]."""

    iou: np.ndarray
    stability: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    crops: np.ndarray
    logits: np.ndarray

    def chosen(self, index: np.ndarray) -> "Found":
        """Some of them, in a new order."""
        return Found(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


def generate(segmenter: Segmenter, image: np.ndarray, settings: Settings, advance: Callable[[int], None]) -> tuple[Found, np.ndarray]:
    """(what was found, best predicted IoU first, its masks bool [N,H,W]) of a uint8 image [H,W,3]. advance: told every batch of points."""
    crops = crop_boxes(image.shape[:2], settings.crop_layers, settings.crop_overlap)
    views, parts = [], []
    for number, (x0, y0, x1, y1) in enumerate(crops):
        view = segmenter.views([image[y0:y1, x0:x1]])[0]
        views.append(view)
        parts.append(_in_crop(segmenter, view, number, crops[number], image.shape[:2], settings, advance))
    found = Found(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Found)))
    if len(crops) > 1:  # of masks from several crops the one from the smaller crop wins
        areas = np.array([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in crops], np.float64)
        found = found.chosen(_nms(found.boxes, 1 / areas[found.crops], settings.crop_nms))
    found = found.chosen(np.argsort(-found.iou, kind="stable"))
    full = np.zeros((len(found.iou), *image.shape[:2]), bool)
    for number, (x0, y0, x1, y1) in enumerate(crops):
        mine = np.flatnonzero(found.crops == number)
        if len(mine):
            full[mine, y0:y1, x0:x1] = segmenter.binary(views[number], found.logits[mine])
    return _tidied(found, full, settings) if settings.min_region_area else (found, full)


def batches(size: tuple[int, int], settings: Settings) -> int:
    """How many batches of points `generate` will work off."""
    count = len(crop_boxes(size, settings.crop_layers, settings.crop_overlap))
    return count * math.ceil(settings.points_per_side**2 / settings.points_per_batch)


def crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of the whole image (height, width) and, for layer n = 1.., of its 4^n overlapping crops."""
    height, width = size
    boxes = [(0, 0, width, height)]
    for layer in range(layers):
        side = 2 ** (layer + 1)
        shared = int(overlap * min(height, width) * (2 / side))
        crop = [math.ceil((shared * (side - 1) + length) / side) for length in (width, height)]
        starts = [[int((length - shared) * n) for n in range(side)] for length in crop]
        boxes += [(x, y, min(x + crop[0], width), min(y + crop[1], height)) for x in starts[0] for y in starts[1]]
    return boxes


def _in_crop(segmenter: Segmenter, view, number: int, crop, size: tuple[int, int], settings: Settings, advance) -> Found:
    """The masks of one crop, overlapping ones dropped."""
    grid = mask_ops.point_grid(settings.points_per_side) * (view.size[1], view.size[0])
    corner = np.array([crop[0], crop[1]])
    parts = []
    for start in range(0, len(grid), settings.points_per_batch):
        asked = grid[start : start + settings.points_per_batch]
        points, labels = prompts.pack(asked[:, None], np.ones((len(asked), 1), np.int32))
        logits, iou = segmenter.decode(view, points, labels, multimask=True)
        logits = logits.reshape(-1, *logits.shape[2:])
        stability, boxes, area = segmenter.measure(view, logits, offset=settings.stability_offset)
        good = (iou.ravel() > settings.pred_iou) & (stability >= settings.stability) & (area > 0)
        good &= ~_cut_off(boxes + np.tile(corner, 2), crop, size)
        if good.any():
            asked = np.repeat(asked, iou.shape[1], 0)[good] + corner
            crops = np.full(good.sum(), number)
            parts.append(
                Found(iou.ravel()[good], stability[good], boxes[good] + np.tile(corner, 2), asked, crops, np.asarray(logits)[good])
            )
        advance(1)
    if not parts:
        low = 4 * view.features.shape[1], 4 * view.features.shape[2]
        shapes = ((0,), (0,), (0, 4), (0, 2), (0,), (0, *low))
        return Found(*(np.zeros(shape, int if n == 4 else np.float32) for n, shape in enumerate(shapes)))
    found = Found(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in dataclasses.fields(Found)))
    return found.chosen(_nms(found.boxes, found.iou, settings.box_nms))


def _cut_off(boxes: np.ndarray, crop: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Which boxes [N,4] touch an edge of their crop that is no edge of the image."""
    whole = np.array([0, 0, size[1], size[0]])
    return np.any((np.abs(boxes - np.array(crop)) <= _EDGE) & ~(np.abs(boxes - whole) <= _EDGE), axis=1)


def _nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Indices that non-maximum suppression keeps, best first; padded to a bucket on the device."""
    wanted = prompts.bucket(len(boxes), (64, 256, 1024))
    pad = lambda x: np.pad(x.astype(np.float32), [(0, wanted - len(x))] + [(0, 0)] * (x.ndim - 1))
    kept = np.asarray(_kept(pad(boxes), pad(scores), np.arange(wanted) < len(boxes), threshold))
    index = np.flatnonzero(kept)
    return index[np.argsort(-scores[index], kind="stable")]


_kept = jax.jit(lambda boxes, scores, valid, threshold: mask_ops.nms(jnp.asarray(boxes), jnp.asarray(scores), valid, threshold))


def _tidied(found: Found, full: np.ndarray, settings: Settings) -> tuple[Found, np.ndarray]:
    """Holes filled and islands removed that are smaller than min_region_area; then masks that were right as they were win again."""
    pairs = [without_small_regions(mask, settings.min_region_area) for mask in full]
    full = np.stack([mask for mask, _ in pairs]) if pairs else full
    untouched = np.array([not changed for _, changed in pairs], np.float32)
    boxes = np.asarray(mask_ops.mask_boxes(jnp.asarray(full))) if len(full) else found.boxes
    kept = np.sort(_nms(boxes, untouched, max(settings.box_nms, settings.crop_nms)))
    found.boxes = boxes
    return found.chosen(kept), full[kept]


def without_small_regions(mask: np.ndarray, area: int) -> tuple[np.ndarray, bool]:
    """(mask bool [H,W] without holes and islands of fewer than `area` pixels, whether that changed it). 8-connected.

    Where every island is smaller, the largest stays.
    """
    before = mask
    for value in (False, True):
        regions, count = ndimage.label(mask == value, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]  # its stub
        sizes = np.bincount(np.asarray(regions, np.intp).ravel(), minlength=count + 1)[1:]
        small = np.flatnonzero(sizes < area) + 1
        if value and len(small) == count and count:
            small = np.setdiff1d(small, [np.argmax(sizes) + 1])
        mask = np.where(np.isin(regions, small), not value, mask)
    return mask, bool((mask != before).any())
