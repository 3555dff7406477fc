"""Light and weather: the looks that the same streets are seen in. Layouts follow one distribution; only these numbers differ."""

import dataclasses

import numpy as np

from segjax.data.scene_canvas import CLASS, Light
from segjax.data.scene_ground import noise

# How rough each class looks, in grey levels; ignore is index 255.
_ROUGH = np.full(256, 3.0, np.float32)
for _name, _amount in {"vegetation": 13, "terrain": 6, "building": 4.5, "wall": 6, "fence": 7, "sky": 0.6, "road": 1.5}.items():
    _ROUGH[CLASS[_name]] = _amount


@dataclasses.dataclass(frozen=True)
class Look:
    """Ranges (low, high) of one look, drawn anew for each scene."""

    sky_top: tuple[float, float, float]
    sky_low: tuple[float, float, float]
    haze: tuple[float, float, float]
    visibility: tuple[float, float]
    clouds: tuple[float, float]
    shade: float
    shadow: float
    lit: float
    gain: tuple[float, float, float]  # colour cast of the light, multiplies
    veil: tuple[float, float, float]  # grey levels added to (or lost from) every pixel: stray light, black level
    gamma: float
    gradient: float  # how much darker the ground is than the sky's edge, 0..1
    exposure: float  # deviation of the log exposure
    grain: float  # sensor noise, grey levels
    glow: float  # halo of lamps that are on


LOOKS = {
    "day": Look(
        sky_top=(96, 148, 214),
        sky_low=(206, 222, 238),
        haze=(196, 210, 226),
        visibility=(220, 420),
        clouds=(0.0, 0.9),
        shade=0.7,
        shadow=0.45,
        lit=0.0,
        gain=(1.03, 1.0, 0.95),
        veil=(4, 5, 7),
        gamma=0.95,
        gradient=0.05,
        exposure=0.06,
        grain=2.5,
        glow=0.0,
    ),
    "dusk": Look(
        sky_top=(84, 84, 140),
        sky_low=(246, 170, 120),
        haze=(186, 140, 136),
        visibility=(130, 260),
        clouds=(0.2, 1.0),
        shade=0.82,
        shadow=0.7,
        lit=0.3,
        gain=(0.7, 0.66, 0.9),
        veil=(-4, -12, 18),
        gamma=1.0,
        gradient=0.3,
        exposure=0.08,
        grain=4.0,
        glow=0.6,
    ),
}


def draw_light(look: Look, rng: np.random.Generator) -> tuple[Light, float]:
    """The light of one scene, and its cloud cover 0..1. Overcast skies are greyer and shade is softer."""
    clouds = float(rng.uniform(*look.clouds))
    grey = 0.55 * clouds

    def dull(colour: tuple[float, float, float]) -> tuple[float, float, float]:
        mean = sum(colour) / 3
        red, green, blue = (c + (mean - c) * grey for c in colour)
        return red, green, blue

    light = Light(
        sky_top=dull(look.sky_top),
        sky_low=dull(look.sky_low),
        haze=dull(look.haze),
        visibility=float(rng.uniform(*look.visibility)) * (1 - 0.3 * clouds),
        sun_side=1 if rng.random() < 0.5 else -1,
        shade=look.shade + (1 - look.shade) * 0.6 * clouds,
        shadow=look.shadow + (1 - look.shadow) * 0.5 * clouds,
        lit=look.lit,
    )
    return light, clouds


def develop(colour: np.ndarray, label: np.ndarray, lamps: list, look: Look, rng: np.random.Generator) -> np.ndarray:
    """From painted surfaces to a photograph: surface texture, lamp halos, gamma, cast, veil, gradient, exposure, sensor noise.

    colour: uint8 [H,W,3]; label: uint8 [H,W]; lamps: (column, row, metres) in the pixels of `colour`. Returns uint8 [H,W,3].
    """
    height, width = label.shape
    texture = _tile(rng, height, width) * _ROUGH[label]
    image = colour.astype(np.float32) + texture[..., None]
    if look.glow:
        image += _halos(lamps, label, look.glow)[..., None] * np.array((255, 190, 110), np.float32)
    image = np.clip(image / 255, 0, 1) ** look.gamma * 255
    exposure = np.exp(rng.normal(0, look.exposure))
    down = 1 - look.gradient * np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 1.5
    image = image * (np.array(look.gain, np.float32) * exposure) * down + np.array(look.veil, np.float32)
    image += rng.standard_normal(image.shape, np.float32) * look.grain
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _tile(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    tile = noise()
    y, x = rng.integers(256, size=2)
    return tile[(np.arange(height) + y)[:, None] % 256, (np.arange(width) + x)[None] % 256]


def _halos(lamps: list, label: np.ndarray, strength: float) -> np.ndarray:
    height, width = label.shape
    total = np.zeros((height, width), np.float32)
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    for column, row, metres in lamps:
        if not (0 <= row < height and 0 <= column < width and label[int(row), int(column)] == CLASS["pole"]):
            continue  # outside the picture, or hidden behind something nearer
        spread = height * 0.9 / metres + 1.5
        total += strength * np.exp(-(((y - row) / spread) ** 2))[:, None] * np.exp(-(((x - column) / spread) ** 2))[None]
    return total
