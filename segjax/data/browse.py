"""A contact sheet of a data set: images under their labels, names beneath, a legend with each class's share, in one picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.dataset import Dataset
from segjax.data.label_spaces import LabelSpace
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE

PAPER, INK, QUIET, RULE, EMPTY, DARKENED = (250, 250, 248), (31, 35, 40), (101, 109, 118), (216, 222, 228), (234, 236, 239), (44, 44, 44)
MARGIN, GAP, NAME_LINE, LEGEND = 36, 18, 30, 210
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 24, 15, 13
SHOWN_IGNORE = 0.35
"""How bright the photograph stays where the label says ignore, of an overlay of opacity 1."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One image of a sheet. picture: None for an example that cannot be read, with the reason in `note`. note: stands right of the name."""

    name: str
    picture: Image.Image | None
    histogram: np.ndarray | None = None
    """Pixels of each train id, int64 [256]; None for an image without a label."""
    note: str = ""


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` indices spread over 0 .. count - 1, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(int)).tolist()


def richest(counts: np.ndarray, wanted: int) -> list[int]:
    """The indices with most pixels, most first; counts: int [N]. Examples without any are left out."""
    order = np.argsort(-counts, kind="stable")[:wanted]
    return [int(index) for index in order if counts[index]]


def named(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """The indices of the examples that are named so, wholly or in part, in the order given. ConfigError: none, or several."""
    known = [dataset.name(index) for index in range(len(dataset))]
    found = []
    for wanted in names:
        hits = [index for index, name in enumerate(known) if name == wanted] or [i for i, name in enumerate(known) if wanted in name]
        if len(hits) != 1:
            what = f"{len(hits)} examples, first {[known[index] for index in hits[:3]]}" if hits else f"none, first {known[:3]}"
            raise ConfigError(f"{wanted!r} names {what} of {dataset!r}: expected a part of exactly one name")
        found += hits
    return found


def cell(dataset: Dataset, index: int, *, width: int, opacity: float) -> Cell:
    """One example as a picture of `width` pixels, its label laid over it. An example that cannot be read says so in its place."""
    name = dataset.name(index)
    try:
        example = dataset[index]
    except DataError as error:
        return Cell(name, None, note=str(error))
    image, label = Image.fromarray(np.asarray(example["image"])), example.get("label")
    if label is not None:
        image = overlay(image, label, dataset.label_space, opacity)
    size = (width, max(1, round(image.height * width / image.width)))
    histogram = None if label is None else np.bincount(label.ravel(), minlength=256)
    return Cell(name, image.resize(size, Image.Resampling.LANCZOS), histogram)


def overlay(image: Image.Image, label: np.ndarray, space: LabelSpace, opacity: float) -> Image.Image:
    """The label's colours over an RGB image of its size; ignored pixels are darkened. opacity: 0 the photograph alone, 1 colours alone."""
    painted = np.asarray(Image.blend(image, Image.fromarray(space.colorize(label)), opacity))
    dark = np.asarray(image) * (1 - opacity * (1 - SHOWN_IGNORE))
    return Image.fromarray(np.where((label == IGNORE)[..., None], dark.astype(np.uint8), painted))


def sheet(cells: Sequence[Cell], *, title: str, subtitle: str, space: LabelSpace, columns: int, width: int) -> Image.Image:
    """Draws the sheet: title, cells in rows of `columns`, and the legend of the labelled ones on the right."""
    heights = [max(_height(one, width) for one in row) for row in _rows(cells, columns)]
    histogram = sum((one.histogram for one in cells if one.histogram is not None), np.zeros(256, np.int64))
    legend = _legend(histogram, space)
    across = min(columns, len(cells))
    grid = across * width + (across - 1) * GAP
    top = MARGIN + TITLE_SIZE + SMALL_SIZE + 30
    body = sum(heights) + NAME_LINE * len(heights) + GAP * (len(heights) - 1)
    size = (2 * MARGIN + grid + (LEGEND + 2 * GAP) * bool(legend), top + max(body, 26 * (len(legend) + 1)) + MARGIN - GAP)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    room = size[0] - 2 * MARGIN
    draw.text((MARGIN, MARGIN - 6), _fit(title, _font(TITLE_SIZE), room), INK, _font(TITLE_SIZE))
    draw.text((MARGIN, MARGIN + TITLE_SIZE + 6), _fit(subtitle, _font(SMALL_SIZE), room), QUIET, _font(SMALL_SIZE))
    y = top
    for row, height in zip(_rows(cells, columns), heights, strict=True):
        for place, one in enumerate(row):
            _draw_cell(page, draw, one, MARGIN + place * (width + GAP), y, width, height)
        y += height + NAME_LINE + GAP
    if legend:
        _draw_legend(draw, legend, MARGIN + grid + 2 * GAP, top)
    return page


def _rows(cells: Sequence[Cell], columns: int) -> list[Sequence[Cell]]:
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def _height(one: Cell, width: int) -> int:
    return one.picture.height if one.picture else width * 9 // 16


def _draw_cell(page: Image.Image, draw: ImageDraw.ImageDraw, one: Cell, x: int, y: int, width: int, height: int) -> None:
    font = _font(SMALL_SIZE)
    if one.picture:
        page.paste(one.picture, (x, y))
        bottom, note = y + one.picture.height, one.note
    else:
        bottom, note = y + height, ""
        draw.rectangle((x, y, x + width - 1, bottom - 1), EMPTY)
        for line, text in enumerate(_wrap(one.note, font, width - 24)[: (height - 16) // 18]):
            draw.text((x + 12, y + 10 + 18 * line), text, QUIET, font)
    space = font.getlength(note) + 12 if note else 0
    draw.text((x, bottom + 7), _fit(one.name, font, width - space), INK, font)
    if note:
        draw.text((x + width, bottom + 7), note, QUIET, font, anchor="ra")


def _legend(histogram: np.ndarray, space: LabelSpace) -> list[tuple[tuple[int, int, int] | None, str, float]]:
    """(colour or None for ignore, name, share of all pixels shown) of what occurs, the largest class first, ignore last."""
    total = max(int(histogram.sum()), 1)
    order = [int(k) for k in np.argsort(-histogram[: space.num_classes], kind="stable") if histogram[k]]
    found: list[tuple[tuple[int, int, int] | None, str, float]] = [
        (space.palette[k], space.classes[k], histogram[k] / total) for k in order
    ]
    return found + ([(None, "(ignored)", histogram[IGNORE] / total)] if histogram[IGNORE] else [])


def _draw_legend(draw: ImageDraw.ImageDraw, legend: list, x: int, y: int) -> None:
    draw.text((x, y - 2), "share of the pixels shown", QUIET, _font(SMALL_SIZE))
    for line, (colour, name, share) in enumerate(legend, 1):
        at = y + 26 * line
        draw.rectangle((x, at, x + 15, at + 15), colour or DARKENED, RULE)
        draw.text((x + 26, at - 2), name, INK, _font(TEXT_SIZE))
        draw.text((x + LEGEND, at - 2), "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %", QUIET, _font(TEXT_SIZE), anchor="ra")


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)


def _fit(text: str, font, width: float) -> str:
    """The text, its middle left out until it fits: the beginning names the drive, the end the frame."""
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(text[: keep // 2] + "..." + text[-(keep - keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "..." + text[-(keep - keep // 2) :]


def _wrap(text: str, font, width: float) -> list[str]:
    """The text in lines that fit; a word that is too long is shortened in its middle."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_fit(word, font, width))
    return [line for line in lines if line]
