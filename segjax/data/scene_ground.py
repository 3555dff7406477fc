"""Sky, road, sidewalk and terrain of a street scene, computed pixel by pixel from the camera."""

import dataclasses
import functools

import numpy as np

from segjax.data.scene_canvas import CLASS, SUPERSAMPLE, Canvas, tint


@dataclasses.dataclass(frozen=True)
class Street:
    """The cross-section of a street, metres. x is measured from the camera."""

    left: float
    right: float
    walk_left: float
    walk_right: float
    beyond: str  # what lies past the sidewalks: "terrain" or "sidewalk"
    rails: bool
    crossing: float | None  # z of a zebra crossing

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

    def kerb(self, side: int) -> float:
        """x of the kerb on the left (-1) or right (1)."""
        return self.left if side < 0 else self.right

    def front(self, side: int) -> float:
        """x of the building line."""
        return self.left - self.walk_left if side < 0 else self.right + self.walk_right


def make_street(rng: np.random.Generator, park: bool) -> Street:
    """Draw a street: two to four lanes, the camera in a right-hand lane."""
    width, offset = rng.uniform(6.5, 13.0), rng.uniform(1.3, 2.6)
    return Street(
        left=offset - width + rng.uniform(0, 1),
        right=offset + rng.uniform(0, 2.2),
        walk_left=rng.uniform(1.8, 4.5),
        walk_right=rng.uniform(1.8, 4.5),
        beyond="terrain" if park or rng.random() < 0.5 else "sidewalk",
        rails=bool(rng.random() < 0.16),
        crossing=float(rng.uniform(9, 22)) if rng.random() < 0.25 else None,
    )


@functools.cache
def noise(smooth: bool = False, size: int = 256) -> np.ndarray:
    """A seamless tile of noise, float32 [size, size], zero mean, unit deviation: fine to coarse grain, or (smooth) clouds alone.

    Made once by filtering white noise in the frequency domain, the same in every process.
    """
    white = np.fft.rfft2(np.random.default_rng(20).standard_normal((size, size)))
    square = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2
    widths = ((16.0, 1.0),) if smooth else ((0.0, 0.5), (0.8, 0.9), (3.0, 2.4), (12.0, 6.0))
    band = sum(weight * np.exp(-square * (2 * np.pi * width) ** 2 / 2) for width, weight in widths)
    tile = np.fft.irfft2(white * band, (size, size)).astype(np.float32)
    tile = (tile - tile.mean()) / tile.std()
    tile.setflags(write=False)
    return tile


def background(canvas: Canvas, street: Street, rng: np.random.Generator, clouds: float) -> np.ndarray:
    """Sky above the horizon and ground below it, uint8 [H,W,4] with the class in the fourth channel. clouds: 0 clear .. 1 overcast."""
    pixels = np.empty((canvas.height, canvas.width, 4), np.uint8)
    row = int(np.ceil(canvas.horizon))
    pixels[:row, :, :3] = _sky(canvas, row, rng, clouds)
    pixels[:row, :, 3] = CLASS["sky"]
    pixels[row:] = _ground(canvas, street, row, rng)
    return pixels


def _sky(canvas: Canvas, rows: int, rng: np.random.Generator, clouds: float) -> np.ndarray:
    height = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    low, top = np.array(canvas.light.sky_low, np.float32), np.array(canvas.light.sky_top, np.float32)
    sky = low + (top - low) * height**0.8
    tile = noise(smooth=True)
    y = (np.linspace(0, 40, rows) ** 1.2 + rng.integers(256)).astype(int) % 256
    x = (np.linspace(0, 90, canvas.width) + rng.integers(256)).astype(int) % 256
    smooth = tile[y[:, None], x[None]]
    cover = np.clip(smooth * 0.9 - 0.5 + clouds * 1.2, 0, 1)[..., None] * (0.35 + 0.4 * clouds)
    white = (0.5 * low + 0.5 * top).mean() * 0.55 + 0.45 * low + 25
    return np.clip(sky + (white - sky) * cover, 0, 255).astype(np.uint8)


def _ground(canvas: Canvas, street: Street, row: int, rng: np.random.Generator) -> np.ndarray:
    # Edges on the ground run steeply across rows: columns alone are supersampled, each row stands for two.
    rows = np.arange(row, canvas.height, SUPERSAMPLE, dtype=np.float32)[:, None] + SUPERSAMPLE / 2
    z = canvas.focal * canvas.camera / np.maximum(rows - canvas.horizon, 0.25)
    x = (np.arange(canvas.width, dtype=np.float32)[None] + 0.5 - canvas.centre) * z / canvas.focal - canvas.bend * z * z
    on_road = (x > street.left) & (x < street.right)
    on_walk = ~on_road & (x > street.front(-1)) & (x < street.front(1))
    label = np.where(on_road, CLASS["road"], np.where(on_walk, CLASS["sidewalk"], CLASS[street.beyond])).astype(np.uint8)

    palette = np.zeros((3, 3), np.float32)
    palette[0] = tint(rng, (92, 92, 96), 10)
    palette[1] = tint(rng, (158, 150, 142), 12)
    palette[2] = tint(rng, (104, 132, 66), 14) if street.beyond == "terrain" else tint(rng, (150, 146, 140), 10)
    colour = palette[np.where(on_road, 0, np.where(on_walk, 1, 2))]

    # Texture sits on the ground, not on the lens: the tile is looked up in metres, and fades where a pixel covers many of its cells.
    tile, jump = noise(), rng.integers(256, size=2)
    grain = tile[(z * 6 + jump[0]).astype(np.int32) % 256, (x * 6 + jump[1]).astype(np.int32) % 256] * np.minimum(1, 14 / z)
    colour += (grain * np.where(label == CLASS["terrain"], 14, np.where(on_road, 6, 8)))[..., None]

    slabs = on_walk & ((z % 1.2 < 0.09) | (x % 1.0 < 0.07)) & (z < 22)
    colour[slabs] -= 22
    paint = _paint(x, z, street) & on_road
    colour[paint] = colour[paint] * 0.25 + 0.75 * np.array((222, 222, 214), np.float32)
    if street.rails:
        steel = (np.abs(np.abs(x - street.middle) - 0.72) < 0.06 + z * 0.002) & on_road
        colour[steel] = (128, 130, 138)
    kerb = (np.abs(x - street.left) < 0.12) | (np.abs(x - street.right) < 0.12)
    colour[kerb] = colour[kerb] * 0.4 + 105

    clear = np.exp(-z / canvas.light.visibility)[..., None]
    colour = colour * clear + np.array(canvas.light.haze, np.float32) * (1 - clear)
    ground = np.concatenate([np.clip(colour, 0, 255).astype(np.uint8), label[..., None]], -1)
    return np.repeat(ground, SUPERSAMPLE, axis=0)[: canvas.height - row]


def _paint(x: np.ndarray, z: np.ndarray, street: Street) -> np.ndarray:
    """Lane marks: a dashed middle line, solid edges, a zebra crossing."""
    fat = 0.07 + z * 0.0015
    marks = (np.abs(x - street.middle) < fat) & (z % 6 < 3)
    marks |= (np.abs(x - street.left - 0.35) < fat) | (np.abs(x - street.right + 0.35) < fat)
    if street.crossing:
        marks |= (np.abs(z - street.crossing) < 1.5) & (x % 1.0 < 0.5)
    return marks
