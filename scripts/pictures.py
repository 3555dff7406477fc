"""The pictures of README.md, from the embedded scenes alone: `python scripts/pictures.py` writes docs/*.png."""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segjax.data.procedural import StreetScenes
from segjax.ops.fourier import amplitude_transfer

SIZE, COLUMNS, GAP, BETA = (144, 288), 4, 6, 0.05
INK, SOFT, SOURCE, TARGET = (30, 34, 40), (110, 118, 128), (186, 104, 20), (58, 78, 160)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def contact_sheet() -> Image.Image:
    """Both looks, each scene above its label."""
    height, width = SIZE
    left = 92
    sheet = Image.new("RGB", (left + COLUMNS * (width + GAP), 4 * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (look, colour, note) in enumerate((("day", SOURCE, "source"), ("dusk", TARGET, "target"))):
        scenes = StreetScenes(size=SIZE, look=look)
        top = 2 * number * (height + GAP)
        for line, text in enumerate((look, note)):
            draw.text((left - 12, top + height // 2 - 10 + 22 * line), text, colour if not line else SOFT, font(17 - 3 * line), anchor="rm")
        draw.text((left - 12, top + height + GAP + height // 2), "label", SOFT, font(14), anchor="rm")
        for column in range(COLUMNS):
            example = scenes[column]
            x = left + column * (width + GAP)
            sheet.paste(Image.fromarray(example["image"]), (x, top))
            sheet.paste(Image.fromarray(scenes.label_space.colorize(example["label"])), (x, top + height + GAP))
    return sheet.crop((0, 0, sheet.width - GAP, sheet.height))


def arrow(draw: ImageDraw.ImageDraw, points: list[tuple[int, int]], colour: tuple[int, int, int]) -> None:
    """A line through right-angled points with a head at the last one, which is reached from the left."""
    draw.line(points[:-1] + [(points[-1][0] - 9, points[-1][1])], colour, 3)
    x, y = points[-1]
    draw.polygon([(x, y), (x - 12, y - 7), (x - 12, y + 7)], colour)


def box(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], lines: list[str], colour: tuple[int, int, int]) -> None:
    draw.rounded_rectangle(corners, 10, outline=colour, width=3, fill=(247, 248, 250))
    centre, middle = (corners[0] + corners[2]) // 2, (corners[1] + corners[3]) // 2
    for number, line in enumerate(lines):
        y = middle + round((number - (len(lines) - 1) / 2) * 22)
        draw.text((centre, y), line, INK if not number else SOFT, font(17 if not number else 14), anchor="mm")


def pipeline() -> Image.Image:
    """What one step of FDA does with a labelled day scene and an unlabelled dusk scene."""
    height, width = SIZE
    day, dusk = StreetScenes(size=SIZE, look="day")[1], StreetScenes(size=SIZE, look="dusk")[1]
    source, target = (jnp.asarray(example["image"][None], jnp.float32) for example in (day, dusk))
    stylized = np.clip(np.asarray(amplitude_transfer(source, target, BETA))[0] + 0.5, 0, 255).astype(np.uint8)
    label = StreetScenes.label_space.colorize(day["label"])
    picture = Image.new("RGB", (1436, 560), "white")
    draw = ImageDraw.Draw(picture)

    def panel(image: np.ndarray, place: tuple[int, int], title: str, colour: tuple[int, int, int]) -> None:
        draw.text((place[0], place[1] - 9), title, colour, font(16), anchor="ls")
        picture.paste(Image.fromarray(image), place)
        draw.rectangle((place[0] - 2, place[1] - 2, place[0] + width + 1, place[1] + height + 1), outline=colour, width=2)

    first, second, network, losses = 20, 420, 800, 1120
    rows = (34, 218, 402)
    middle = [row + height // 2 for row in rows]
    panel(label, (first, rows[0]), "label of the day scene", SOURCE)
    panel(day["image"], (first, rows[1]), "source: day, labelled", SOURCE)
    panel(dusk["image"], (first, rows[2]), "target: dusk, no label", TARGET)
    panel(stylized, (second, rows[1]), "day in dusk's low-frequency amplitudes", SOURCE)
    right = first + width
    arrow(draw, [(right + 3, middle[1]), (second - 2, middle[1])], SOURCE)
    draw.line([(right + 3, middle[2] - 30), (right + 50, middle[2] - 30), (right + 50, middle[1] + 30)], TARGET, 3)
    arrow(draw, [(right + 50, middle[1] + 30), (second - 2, middle[1] + 30)], TARGET)
    box(draw, (network, rows[1] - 10, network + 210, rows[2] + height), ["network", "ENet or DeepLabV2", "the same weights for both"], INK)
    arrow(draw, [(second + width + 3, middle[1]), (network, middle[1])], SOURCE)
    arrow(draw, [(right + 3, middle[2] + 20), (network, middle[2] + 20)], TARGET)
    box(draw, (losses, middle[1] - 44, losses + 296, middle[1] + 44), ["cross-entropy", "answer against the day's label"], SOURCE)
    box(draw, (losses, middle[2] - 24, losses + 296, middle[2] + 64), ["robust entropy", "how undecided the answer on dusk is"], TARGET)
    arrow(draw, [(network + 210, middle[1]), (losses, middle[1])], SOURCE)
    arrow(draw, [(network + 210, middle[2] + 20), (losses, middle[2] + 20)], TARGET)
    over = losses + 148
    draw.line([(right + 3, middle[0]), (over, middle[0]), (over, middle[1] - 56)], SOURCE, 3)
    draw.polygon([(over, middle[1] - 45), (over - 7, middle[1] - 57), (over + 7, middle[1] - 57)], SOURCE)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "docs")
    folder = parser.parse_args().out
    for name, picture in (("street_scenes", contact_sheet()), ("fda_step", pipeline())):
        path = folder / f"{name}.png"
        picture.save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
