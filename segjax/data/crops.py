"""What a training crop is: resize, random scale, random place and flip of an image and its label together, and which crops will do."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segjax.data import features
from segjax.data.sampling import Wanted
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE


@dataclasses.dataclass(frozen=True)
class Quality:
    """A crop of a labelled image will do when enough classes are in it; else it is redrawn up to `redraws` times, the last one kept.

    At least `min_classes` classes (ignore is none) each cover more than `min_share` of the crop, and the largest covers less than
    `max_share` of its labelled pixels. DAFormer (cat_max_ratio): Quality(max_share=0.75). DiGA (5 tries):
    Quality(min_share=0.02, redraws=4); its rule "three label values, or two without ignore" is two classes.
    """

    min_classes: int = 2
    min_share: float = 0.0
    max_share: float = 1.0
    redraws: int = 10

    def accepts(self, label: np.ndarray) -> bool:
        """label: train ids of a crop, uint8 [h,w]."""
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
        enough = np.count_nonzero(counts > self.min_share * label.size) >= self.min_classes
        return bool(enough and (self.max_share >= 1 or counts.max() < self.max_share * counts.sum()))


@dataclasses.dataclass(frozen=True)
class CropRule:
    """How training crops are cut.

    crop: (height, width) of the result. resize: (height, width) that the whole image is taken to first; None keeps its own. scale: uniform
    factor in [lo, hi] on top; `independent`: one for the height and one for the width (DiGA's RandomSized_and_Crop). flip: left-right with
    probability one half. small: where the scaled image is smaller than the crop, "pad" (black, label 255) or "fill" (the whole image is
    stretched over the crop, as DiGA). quality: which crops of a labelled image will do. share: the part of a batch that is cut like this.
    diagonal: as detectron2's FixedSizeCrop, which draws one number for the place in both directions, and pads to the right and below what
    is smaller than the crop, at scale 1 too.
    """

    crop: tuple[int, int]
    resize: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    independent: bool = False
    flip: bool = True
    small: str = "pad"
    quality: Quality | None = None
    share: float = 1.0
    diagonal: bool = False

    def check(self, height: int, width: int, name: str) -> None:
        """DataError when the crop exceeds an image of this size at scale 1."""
        height, width = self.resize or (height, width)
        if self.small == "pad" and not self.diagonal and (self.crop[0] > height or self.crop[1] > width):
            way_out = "set data.resize" if self.resize is None else "raise data.resize"
            raise DataError(f"crop {self.crop[1]}x{self.crop[0]} is larger than {width}x{height} in {name}: lower data.crop or {way_out}")


class _View(NamedTuple):
    """One drawn crop. scaled: (height, width) of the image that it is cut from; y, x: (first pixel there, offset in the crop, length)."""

    scaled: tuple[int, int]
    y: tuple[int, int, int]
    x: tuple[int, int, int]
    mirrored: bool


def rules(common: Mapping[str, Any], parts: Any, where: str) -> tuple[CropRule, ...]:
    """A role's crop rules: `parts` (one mapping or several) over the keys that hold for all. ConfigError names what is wrong.

    All crops of a role have one size, since they lie in one array.
    """
    parts = (parts,) if isinstance(parts, Mapping) else tuple(parts) or ({},)
    found = tuple(_rule({**common, **part}, where) for part in parts)
    if sizes := {rule.crop for rule in found[1:]} - {found[0].crop}:
        raise ConfigError(f"{where}: crops of {found[0].crop} and {sizes.pop()} in one batch: give all parts of a role one crop size")
    return found


def _rule(values: Mapping[str, Any], where: str) -> CropRule:
    known = [field.name for field in dataclasses.fields(CropRule)]
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"{where}: a crop has no {unknown[0]!r}: known: {', '.join(known)}")
    quality = values.get("quality") or None
    if isinstance(quality, Mapping):
        known = [field.name for field in dataclasses.fields(Quality)]
        if unknown := [key for key in quality if key not in known]:
            raise ConfigError(f"{where}.quality: there is no {unknown[0]!r}: known: {', '.join(known)}")
        quality = Quality(**quality)
    rule = CropRule(**{**values, "quality": quality, "resize": values.get("resize") or None})
    for key, pair, kind in (("crop", rule.crop, int), ("resize", rule.resize or rule.crop, int), ("scale", rule.scale, int | float)):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(isinstance(v, kind) and v > 0 for v in pair):
            raise ConfigError(f"{where}.{key}={pair!r}: expected two positive numbers, e.g. {(0.5, 1.5) if key == 'scale' else (256, 384)}")
    if rule.scale[0] > rule.scale[1]:
        raise ConfigError(f"{where}.scale={tuple(rule.scale)} is not a range, expected 0 < lowest <= highest, e.g. (0.5, 1.5)")
    if rule.small not in ("pad", "fill"):
        raise ConfigError(f"{where}.small={rule.small!r}: expected 'pad' or 'fill'")
    return dataclasses.replace(rule, crop=tuple(rule.crop), scale=tuple(rule.scale), resize=tuple(rule.resize) if rule.resize else None)


def random_crop(rng: np.random.Generator, example: dict, rule: CropRule, wanted: Wanted | None = None, out: dict | None = None) -> dict:
    """Cut one crop of an example, redrawn while the rule's quality or `wanted` (class sampling) asks for it.

    example: image uint8 [H,W,3], optional label uint8 [H,W], name. Image bilinear (antialiased when it shrinks), label nearest, both cut
    straight from the original in one step, whatever the resize and the scale. A redraw looks at the label alone. The redraws for a wanted
    class surround those for quality, as in DAFormer; each draws scale, place and flip anew.
    out: {"image" [h,w,3], "label"? [h,w], "sam_features"? of the whole image (`data.features`)} to write into (a row of a batch). Returns
    it. DataError when the crop exceeds the image.
    """
    image, label = example["image"], example.get("label")
    height, width = image.shape[:2]
    rule.check(height, width, example.get("name", "an image"))
    if out is None:
        out = {"image": np.empty((*rule.crop, 3), np.uint8)} | ({} if label is None else {"label": np.empty(rule.crop, np.uint8)})
    if label is None:
        view = _draw(rng, rule, height, width)
    else:
        outer = wanted.redraws if wanted else 0
        inner = rule.quality.redraws if rule.quality else 0
        view = None
        for outer_left in range(outer, -1, -1):
            for inner_left in range(inner, -1, -1):
                view = _draw(rng, rule, height, width)
                _cut_label(label, view, out["label"])
                if not inner_left or (rule.quality and rule.quality.accepts(out["label"])):
                    break
            if not outer_left or (wanted and np.count_nonzero(out["label"] == wanted.class_id) > wanted.pixels):
                break
        assert view is not None  # the loops draw at least once
    _cut_image(image, view, out["image"])
    if features.KEY in out:
        whole = view.scaled == (height, width) == rule.crop
        out[features.KEY][...] = features.whole_image(example, rule.crop, whole, view.mirrored)
    return out


def _draw(rng: np.random.Generator, rule: CropRule, height: int, width: int) -> _View:
    """One crop's geometry. The count of numbers drawn depends on no knob."""
    low, high = rule.scale
    by_y, by_x, place_y, place_x, coin = rng.random(5)
    by_x = by_x if rule.independent else by_y
    base = rule.resize or (height, width)
    scaled = (max(1, round(base[0] * (low + (high - low) * by_y))), max(1, round(base[1] * (low + (high - low) * by_x))))
    if rule.small == "fill" and (scaled[0] < rule.crop[0] or scaled[1] < rule.crop[1]):
        scaled = rule.crop
    if rule.diagonal:
        place_x = place_y
    spans = [_span(place, crop, size) for place, crop, size in zip((place_y, place_x), rule.crop, scaled, strict=True)]
    if rule.diagonal:
        spans = [(first, 0, length) for first, _, length in spans]
    return _View(scaled, *spans, rule.flip and coin < 0.5)


def _span(place: float, crop: int, size: int) -> tuple[int, int, int]:
    """(first pixel in the scaled image, offset in the crop, length) along one axis; place in [0, 1)."""
    slack = int(place * (abs(size - crop) + 1))
    return (slack, 0, crop) if size >= crop else (0, slack, size)


def _placed(view: _View, out: np.ndarray, fill: int) -> np.ndarray:
    """The part of `out` that the image covers; the rest is filled."""
    (_, top, h), (_, left, w) = view.y, view.x
    if (h, w) != out.shape[:2]:
        out[...] = fill
    left = out.shape[1] - left - w if view.mirrored else left
    return out[top : top + h, left : left + w]


def _cut_label(label: np.ndarray, view: _View, out: np.ndarray) -> None:
    (y, _, h), (x, _, w) = view.y, view.x
    if view.scaled == label.shape:
        piece = label[y : y + h, x : x + w]
    else:
        rows, columns = (
            np.minimum(((np.arange(start, start + length) + 0.5) * (size / scaled)).astype(np.intp), size - 1)
            for start, length, size, scaled in ((y, h, label.shape[0], view.scaled[0]), (x, w, label.shape[1], view.scaled[1]))
        )
        piece = label[rows].take(columns, axis=1)
    _placed(view, out, IGNORE)[...] = piece[:, ::-1] if view.mirrored else piece


def _cut_image(image: np.ndarray, view: _View, out: np.ndarray) -> None:
    (y, _, h), (x, _, w) = view.y, view.x
    scaled = view.scaled != image.shape[:2]
    # Only the pixels that the filter reaches are handed to PIL: the box and, on each side, the filter's support.
    (top, bottom, y0, y1), (left, right, x0, x1) = (
        _window(start, length, size, to) if scaled else (start, start + length, start, start + length)
        for start, length, size, to in ((y, h, image.shape[0], view.scaled[0]), (x, w, image.shape[1], view.scaled[1]))
    )
    piece = image[top:bottom, left:right]
    if scaled or view.mirrored:
        part = Image.fromarray(piece)
        if scaled:
            part = part.resize((w, h), Image.Resampling.BILINEAR, box=(x0 - left, y0 - top, x1 - left, y1 - top))
        # PIL turns whole pixels: ten times as fast as numpy, which copies them byte by byte.
        piece = np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirrored else part)
    _placed(view, out, 0)[...] = piece


def _window(start: int, length: int, size: int, scaled: int) -> tuple[int, int, float, float]:
    """(first, end) of the original's pixels that a span of the scaled image needs, and the span's own bounds in the original."""
    by = size / scaled
    low, high = start * by, min((start + length) * by, size)
    reach = max(by, 1.0) + 1
    return max(int(low - reach), 0), min(int(high + reach) + 1, size), low, high
