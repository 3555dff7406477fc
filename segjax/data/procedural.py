"""The embedded data set: street scenes with all 19 Cityscapes classes, generated at run time, in two looks, never stored."""

import zlib

import numpy as np

from segjax.data import label_spaces
from segjax.data import scene_parts as parts
from segjax.data import scene_traffic as traffic
from segjax.data.dataset import Dataset, Example
from segjax.data.scene_canvas import SUPERSAMPLE, Canvas
from segjax.data.scene_ground import Street, background, make_street
from segjax.data.scene_look import LOOKS, develop, draw_light
from segjax.errors import ConfigError

LENGTHS = {"train": 512, "val": 128}


class StreetScenes(Dataset):
    """Street scenes seen from a car. Scene i depends on (seed, split, look, i) and the size only.

    size: (height, width) of image and label. look: "day" or "dusk": one distribution of streets, another light, cast, contrast and haze;
    no two looks or splits share a scene. length: number of scenes, default 512 (train) or 128 (val). labelled=False gives images alone.
    cache: keep drawn scenes in memory. Labels are Cityscapes train ids, 255 for litter bins. ConfigError: unknown look or split.
    """

    label_space = label_spaces.get("cityscapes19")

    def __init__(
        self,
        *,
        size: tuple[int, int] = (192, 384),
        look: str = "day",
        length: int | None = None,
        split: str = "train",
        seed: int = 0,
        labelled: bool = True,
        cache: bool = False,
    ):
        super().__init__(cache)
        if look not in LOOKS:
            raise ConfigError(f"look={look!r} is unknown, expected one of {', '.join(LOOKS)}")
        if split not in LENGTHS:
            raise ConfigError(f"split={split!r} is unknown, expected one of {', '.join(LENGTHS)}")
        if min(size) < 32:
            raise ConfigError(f"size={tuple(size)} is too small to draw a street, expected at least 32x32: raise data.source.size")
        height, width = size
        self.size, self.look, self.split, self.seed, self.labelled = (height, width), look, split, int(seed), labelled
        self.length = LENGTHS[split] if length is None else int(length)

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        return (
            f"StreetScenes({self.size[0]}x{self.size[1]}, {self.look}, {self.split}, {self.length} examples, "
            f"seed={self.seed}, labelled={self.labelled})"
        )

    def _load(self, index: int) -> Example:
        # crc32, not hash(): the same in every process and every Python.
        rng = np.random.default_rng([self.seed, zlib.crc32(f"{self.split}/{self.look}".encode()), index])
        image, label = render(rng, self.size, self.look)
        example = {"image": image, "name": self._name(index)}
        return example | {"label": label} if self.labelled else example

    def _image_size(self, index: int) -> tuple[int, int]:
        return self.size

    def _name(self, index: int) -> str:
        return f"{self.look}-{self.split}-{index:05d}"


def render(rng: np.random.Generator, size: tuple[int, int], look: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene: image uint8 [H,W,3], label uint8 [H,W]. Far to near: ground, skyline, street fronts, then what stands before them."""
    light, clouds = draw_light(LOOKS[look], rng)
    canvas = Canvas(size, rng, light)
    park = bool(rng.random() < 0.3)
    street = make_street(rng, park)
    canvas.start(background(canvas, street, rng, clouds))
    _skyline(canvas)
    fronts = [item for side in (-1, 1) for item in _fronts(canvas, street, side, park)]
    for _, draw in sorted(fronts, key=lambda item: -item[0]):
        draw()
    lamps = []
    things = _furniture(canvas, street, lamps) + _traffic(canvas, street) + _people(canvas, street)
    for _, draw in sorted(things, key=lambda item: -item[0]):
        draw()
    colour, label = canvas.finish()
    lamps = [(column / SUPERSAMPLE, row / SUPERSAMPLE, metres) for column, row, metres in lamps]
    return develop(colour, label, lamps, LOOKS[look], rng), label


def _skyline(canvas: Canvas) -> None:
    """Distant trees and roofs on the horizon, so that a street never ends in a bare edge."""
    rng, x = canvas.rng, -140.0
    while x < 140:
        if rng.random() < 0.6:
            canvas.disc(x, 3, 115, rng.uniform(5, 12), rng.uniform(4, 8), parts.GREENS[rng.integers(len(parts.GREENS))], "vegetation")
        else:
            facade = parts.FACADES[rng.integers(len(parts.FACADES))]
            canvas.front(x, x + rng.uniform(8, 20), 0, rng.uniform(6, 20), 120, facade, "building")
        x += rng.uniform(7, 15)


def _fronts(canvas: Canvas, street: Street, side: int, park: bool) -> list:
    """The line along the sidewalk, as (nearest z, draw): houses, walls, fences, hedges, gaps, and what shows above them."""
    rng, x, z, items = canvas.rng, street.front(side), canvas.rng.uniform(1.5, 4.0), []
    chance = np.array((0.2, 0.12, 0.2, 0.22, 0.26) if park else (0.66, 0.1, 0.1, 0.06, 0.08))
    while z < 105:
        kind, far = rng.choice(5, p=chance), z + rng.uniform(7, 20)
        if kind < 4:
            draw = (parts.building, parts.wall, parts.fence, parts.hedge)[kind]
            items.append((z, lambda draw=draw, z=z, far=far: draw(canvas, side, x, z, far)))
        if kind > 0:
            for _ in range(rng.integers(1, 4)):
                at, away = x + side * rng.uniform(1.8, 9), rng.uniform(z, far)
                items.append((away, lambda at=at, away=away: parts.tree(canvas, at, away, canvas.rng.uniform(0.8, 1.5))))
            if rng.random() < 0.5:
                set_back = x + side * rng.uniform(9, 16)
                items.append((far, lambda at=set_back, z=z, far=far: parts.building(canvas, side, at, z, far)))
        z = far + (rng.uniform(2, 7) if rng.random() < 0.25 else 0.0)
    return items


def _furniture(canvas: Canvas, street: Street, lamps: list) -> list:
    """Lamps at even distances, and signs, lights, trees, poles, bushes and bins between them, as (z, draw)."""
    rng, items = canvas.rng, []
    for side in (-1, 1):
        kerb = street.kerb(side) + side * 0.5
        z, gap = rng.uniform(5, 18), rng.uniform(16, 28)
        while z < 85:
            items.append((z, lambda z=z, x=kerb, side=side: lamps.append(parts.lamp(canvas, side, x, z))))
            z += gap
        deep = street.front(side) - side * 0.4
        for z in rng.uniform(5, 60, rng.integers(2, 7)):
            kind = rng.choice(5, p=(0.34, 0.28, 0.16, 0.12, 0.1))
            draw = (parts.sign, parts.tree, parts.pole, parts.bush, parts.bin_)[kind]
            items.append((z, lambda draw=draw, z=z, x=deep if kind == 3 else kerb: draw(canvas, x, z)))
    if rng.random() < 0.45:
        z = street.crossing + 2 if street.crossing else rng.uniform(9, 26)
        for side in (-1, 1):
            items.append((z, lambda z=z, side=side: parts.traffic_light(canvas, side, street.kerb(side) + side * 0.35, z)))
    return items


def _traffic(canvas: Canvas, street: Street) -> list:
    """Vehicles in both directions, parked cars at the kerb, two-wheelers, now and then a tram or something that crosses, as (z, draw)."""
    rng, items = canvas.rng, []
    ahead, towards = street.middle + 0.27 * (street.right - street.left), street.middle - 0.27 * (street.right - street.left)
    for x, oncoming in ((ahead, False), (towards, True)):
        z = rng.uniform(7, 30)
        while z < 90:
            kind = rng.choice(5, p=(0.66, 0.1, 0.08, 0.1, 0.06))
            if kind < 3:
                draw = (traffic.car, traffic.truck, traffic.bus)[kind]
                items.append((z, lambda draw=draw, x=x, z=z, o=oncoming: draw(canvas, x, z, oncoming=o)))
            else:
                items.append((z, lambda x=x, z=z, motor=kind == 3: traffic.two_wheeler(canvas, x, z, motor=motor, ridden=True)))
            z += rng.uniform(9, 40)
    for side in (-1, 1):
        if rng.random() < 0.45:
            z, parked = rng.uniform(5, 14), street.kerb(side) - side * 1.05
            while z < 60:
                if rng.random() < 0.75:
                    items.append((z, lambda z=z, x=parked: traffic.car(canvas, x, z)))
                z += rng.uniform(5.4, 7.5)
    if street.rails and rng.random() < 0.75:
        z = rng.uniform(10, 34)
        items = [item for item in items if not z - 5 < item[0] < z + 27]
        items.append((z, lambda: traffic.train(canvas, street.middle, z)))
    for _ in range(rng.integers(0, 4)):
        side, z = int(rng.choice((-1, 1))), rng.uniform(6, 30)
        x, motor = street.kerb(side) + side * rng.uniform(0.3, 1.0), bool(rng.random() < 0.3)
        across = bool(rng.random() < 0.7)
        items.append(
            (z, lambda x=x, z=z, m=motor, a=across: traffic.two_wheeler(canvas, x, z, motor=m, ridden=False, across=a, ground="sidewalk"))
        )
    if rng.random() < 0.15:
        far = rng.uniform(16, 40)
        items.append((far, lambda: traffic.car_across(canvas, street.middle + canvas.rng.uniform(-3, 3), far)))
    if rng.random() < 0.2:
        near = rng.uniform(8, 18)
        x, motor = street.middle + rng.uniform(-3, 3), bool(rng.random() < 0.4)
        items.append((near, lambda: traffic.two_wheeler(canvas, x, near, motor=motor, ridden=True, across=True)))
    return items


def _people(canvas: Canvas, street: Street) -> list:
    """Walkers on both sidewalks, some in pairs, and a few who cross the road, as (z, draw)."""
    rng, items = canvas.rng, []
    for side in (-1, 1):
        for z in rng.uniform(5, 45, rng.integers(0, 7)):
            x = street.kerb(side) + (street.front(side) - street.kerb(side)) * rng.uniform(0.25, 0.85)
            items += [(z, lambda x=x, z=z, d=d: traffic.person(canvas, x + d, z)) for d in ((0.0, 0.6) if rng.random() < 0.3 else (0.0,))]
    if rng.random() < 0.25 or street.crossing:
        for _ in range(rng.integers(1, 4)):
            z, x = street.crossing or rng.uniform(8, 25), rng.uniform(street.left, street.right)
            items.append((z, lambda x=x, z=z: traffic.person(canvas, x, z, ground="road")))
    return items
