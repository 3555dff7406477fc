"""The yardstick of `scripts/bench_refine.py`: CLOUDS' refinement as its authors run it, image by image and class by class on the host.

The segmenter's parts come as functions of one image: encode(image) -> features, decode(features, points [P,N,2], ones [P,N]) -> (logits
[P,3,h,w], IoU [P,3]) for exactly the prompts there are, enlarge(logits) -> logits [P,3,H,W]. Between them everything is numpy and scipy,
in the order and with the intermediate arrays of yasserben/CLOUDS my_utils/mask_utils.py (integer masks of every component, all three
masks of every prompt at full size).
"""

import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage


def components(label: np.ndarray, num_classes: int, min_area: int) -> dict[int, list[np.ndarray]]:
    """The masks of large components of every class."""
    found = {}
    for k in np.unique(label):
        if k >= num_classes:
            continue
        mask = (label == k).astype(np.float32)
        marks, count = ndimage.label(mask)
        areas = ndimage.sum(mask, marks, range(count + 1))
        found[int(k)] = [(marks == n).astype(int) for n in range(1, count + 1) if areas[n] > min_area]
    return found


def points_of(found: dict[int, list[np.ndarray]], count: int, rng: np.random.Generator) -> np.ndarray:
    """[P,count,2] as (x, y)."""
    drawn = []
    for masks in found.values():
        for mask in masks:
            places = np.column_stack(np.where(mask == 1))[:, ::-1]
            drawn.append(places[rng.choice(len(places), count, replace=False)].astype(np.float32))
    return np.stack(drawn) if drawn else np.zeros((0, count, 2), np.float32)


def combined(masks: np.ndarray, iou: np.ndarray, found: dict[int, list[np.ndarray]]) -> dict[int, np.ndarray]:
    """Class -> mask: best by predicted IoU, without what several cover, united."""
    best = masks[np.arange(len(masks)), iou.argmax(1)].astype(np.float32)
    best[:, best.sum(0) > 1] = 0
    united, start = {}, 0
    for k, own in found.items():
        if own:
            united[k] = np.any(best[start : start + len(own)] > 0, 0)
            start += len(own)
    return united


def refine(
    images: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    encode: Callable,
    decode: Callable,
    enlarge: Callable,
    *,
    num_classes: int,
    min_area: int,
    count: int,
    features: list | None = None,
) -> tuple[list[dict[int, np.ndarray]], dict[str, list[float]]]:
    """(class masks of every image, [wall, processor] seconds by part). features: of every image, if they were kept."""
    answers, spent = [], {name: [0.0, 0.0] for name in ("host", "encode", "decode", "enlarge")}

    def timed(name: str, call: Callable):
        begun = time.perf_counter(), time.process_time()
        value = call()
        for n, now in enumerate((time.perf_counter(), time.process_time())):
            spent[name][n] += now - begun[n]
        return value

    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        found = timed("host", lambda label=label: components(label, num_classes, min_area))
        points = timed("host", lambda found=found: points_of(found, count, rng))
        seen = timed("encode", lambda image=image: encode(image)) if features is None else features[n]
        if not len(points):
            answers.append({int(k): label == k for k in np.unique(label) if k < num_classes})
            continue
        logits, iou = timed("decode", lambda seen=seen, points=points: decode(seen, points, np.ones(points.shape[:2], np.int32)))
        masks = timed("enlarge", lambda logits=logits: np.asarray(enlarge(logits)) > 0)
        answers.append(timed("host", lambda masks=masks, iou=iou, found=found: combined(masks, np.asarray(iou), found)))
    return answers, spent
