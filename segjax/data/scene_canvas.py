"""Camera, canvas and light of the procedural street scenes: colour and label are drawn together, in one stroke each.

World: metres, x to the right, y up from the ground, z ahead of the camera. The canvas is RGBA at twice the final size and its alpha channel
is the label, so one polygon call writes both and they can never disagree; colour is averaged 2x2 at the end, the label is picked.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw

from segjax.data.label_spaces import LABEL_SPACES
from segjax.typing import IGNORE

CLASS = {name: index for index, name in enumerate(LABEL_SPACES["cityscapes19"].classes)} | {"void": IGNORE}
SUPERSAMPLE = 2


@dataclasses.dataclass(frozen=True)
class Light:
    """What the air and the sun do to a surface as it is drawn. Colours are RGB 0..255."""

    sky_top: tuple[float, float, float]
    sky_low: tuple[float, float, float]
    haze: tuple[float, float, float]
    visibility: float  # metres at which haze has taken 63 %
    sun_side: int  # -1 or 1: the side of the street that lies in shade is the one the sun stands on
    shade: float  # brightness of a surface turned away from the sun
    shadow: float  # brightness of the ground under things
    lit: float  # share of windows and lamps that are switched on


class Canvas:
    """A pinhole camera above a road that bends, and the picture it takes."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, light: Light):
        self.height, self.width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
        self.rng, self.light = rng, light
        self.focal = self.width * rng.uniform(0.52, 0.66)
        self.camera = rng.uniform(1.35, 1.8)
        self.horizon = self.height * rng.uniform(0.37, 0.47)
        self.centre = self.width * rng.uniform(0.42, 0.58)
        self.bend = rng.normal(0, 0.0011)
        self.image = Image.new("RGBA", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    def start(self, pixels: np.ndarray) -> None:
        """Lay down the background, uint8 [H,W,4]: RGB and label."""
        self.image = Image.fromarray(pixels, "RGBA")
        self.draw = ImageDraw.Draw(self.image)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """World point -> pixel (column, row). z must be positive."""
        scale = self.focal / z
        return self.centre + (x + self.bend * z * z) * scale, self.horizon + (self.camera - y) * scale

    def ink(self, colour, z: float, name: str, light: float = 1.0) -> tuple[int, int, int, int]:
        """The drawn colour of a surface at distance z: lit, then hazed, with its class in the fourth place."""
        clear = math.exp(-z / self.light.visibility)
        r, g, b = (int(min(255.0, c * light) * clear + h * (1 - clear)) for c, h in zip(colour, self.light.haze, strict=True))
        return r, g, b, CLASS[name]

    def shape(self, points, colour, name: str, light: float = 1.0) -> None:
        """Fill the polygon through world points (x, y, z)."""
        ink = self.ink(colour, points[0][2], name, light)
        self.draw.polygon([self.project(*point) for point in points], fill=ink)

    def front(self, x0, x1, y0, y1, z, colour, name, light: float = 1.0) -> None:
        """Fill an upright rectangle that faces the camera."""
        (left, top), (right, low) = self.project(x0, y1, z), self.project(x1, y0, z)
        self.draw.rectangle((min(left, right), top, max(left, right), max(top, low)), fill=self.ink(colour, z, name, light))

    def side(self, x, y0, y1, z0, z1, colour, name, light: float = 1.0) -> None:
        """Fill an upright rectangle that runs along the street."""
        self.shape([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], colour, name, light)

    def disc(self, x, y, z, rx, ry, colour, name, light: float = 1.0) -> None:
        """Fill an ellipse that faces the camera; radii in metres."""
        (left, top), (right, low) = self.project(x - rx, y + ry, z), self.project(x + rx, y - ry, z)
        self.draw.ellipse((left, top, right, low), fill=self.ink(colour, z, name, light))

    def line(self, a, b, width: float, colour, name, light: float = 1.0) -> None:
        """Draw a stroke between world points; width in metres, at least one final pixel."""
        pixels = max(SUPERSAMPLE, round(width * self.focal / a[2]))
        self.draw.line([self.project(*a), self.project(*b)], fill=self.ink(colour, a[2], name, light), width=pixels)

    def facing(self, side: int) -> float:
        """Brightness of walls on the left (-1) or right (1) of the street."""
        return self.light.shade if side == self.light.sun_side else 1.0

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Colour uint8 [h,w,3] averaged over the supersamples, and label uint8 [h,w] picked from them."""
        colour = np.asarray(self.image.convert("RGB").reduce(SUPERSAMPLE))
        return colour, np.asarray(self.image.getchannel("A"))[1::SUPERSAMPLE, ::SUPERSAMPLE].copy()


def tint(rng: np.random.Generator, colour, spread: float = 12.0) -> tuple[float, float, float]:
    """A colour near the given one: brightness varies more than hue."""
    grey, *shift = (spread * rng.standard_normal(4)).tolist()
    red, green, blue = (min(255.0, max(0.0, c + grey + d / 3)) for c, d in zip(colour, shift, strict=True))
    return red, green, blue
