"""The things that stand beside a street: buildings, walls, fences, trees, poles, lamps, lights, signs."""

from segjax.data.scene_canvas import Canvas, tint

FACADES = ((176, 120, 96), (196, 176, 142), (150, 140, 132), (205, 196, 182), (142, 96, 84), (168, 158, 118), (120, 126, 136))
GREENS = ((72, 104, 44), (58, 92, 40), (88, 116, 52), (98, 112, 46), (64, 98, 60))
WARM = (255, 214, 130)
STEEL = (96, 98, 100)


def building(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A house from z0 to z1 whose facade stands at x, with windows, a ground floor and the end wall that faces the camera."""
    rng, floor = canvas.rng, canvas.rng.uniform(2.8, 3.4)
    floors = int(rng.integers(2, 7))
    height = floor * floors + rng.uniform(0.3, 1.2)
    colour, light = tint(rng, FACADES[rng.integers(len(FACADES))], 16), canvas.facing(side)
    depth = side * 14
    canvas.front(x, x + depth, 0, height, z0, colour, "building", 0.5 * (light + canvas.light.shade))
    canvas.side(x, 0, height, z0, z1, colour, "building", light)
    if rng.random() < 0.5:
        roof, ridge = ((112, 66, 54), (80, 80, 86))[rng.integers(2)], (x + side * 5, height + 2.4)
        canvas.shape([(x, height, z0), (*ridge, z0), (x + depth, height, z0)], colour, "building", canvas.light.shade)
        canvas.shape([(x, height, z0), (x, height, z1), (*ridge, z1), (*ridge, z0)], roof, "building", light)
    canvas.side(x, 0, floor, z0, z1, tuple(0.82 * c for c in colour), "building", light)
    if z0 < 55:
        _windows(canvas, x, z0, z1, floor, floors, light)


def _windows(canvas: Canvas, x, z0, z1, floor, floors, light) -> None:
    rng = canvas.rng
    columns = max(1, int((z1 - z0) / rng.uniform(2.2, 3.6)))
    step = (z1 - z0) / columns
    glass = tint(rng, (66, 76, 90), 12)
    for column in range(columns):
        near = z0 + (column + 0.25) * step
        if near > 60 or near < 2:
            continue
        far = near + 0.5 * step
        for level in range(floors):
            low = level * floor + (0.9 if level else 0.3)
            if canvas.project(x, low, near)[1] < 0:
                break
            on = rng.random() < canvas.light.lit
            canvas.side(x, low, low + floor * 0.55, near, far, WARM if on else glass, "building", 1.0 if on else light)


def wall(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A free-standing wall of blocks with a lighter coping."""
    colour, light = tint(canvas.rng, (150, 140, 128), 14), canvas.facing(side)
    height = canvas.rng.uniform(1.6, 3.2)
    canvas.front(x, x + side * 0.5, 0, height, z0, colour, "wall", canvas.light.shade)
    canvas.side(x, 0, height, z0, z1, colour, "wall", light)
    canvas.side(x, height - 0.18, height, z0, z1, tuple(1.2 * c for c in colour), "wall", light)
    for level in (0.45, 0.9, 1.35):
        canvas.line((x, level, z0), (x, level, z1), 0.02, tuple(0.8 * c for c in colour), "wall", light)


def fence(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """Posts, rails and a mesh; the holes belong to the fence, as annotators draw it."""
    rng, light, height = canvas.rng, canvas.facing(side), canvas.rng.uniform(1.1, 2.0)
    wood = rng.random() < 0.5
    post = tint(rng, (126, 98, 70) if wood else (110, 118, 116), 12)
    canvas.side(x, 0, height, z0, z1, tuple(1.15 * c for c in post) if wood else (138, 146, 128), "fence", light * (0.85 if wood else 1.0))
    z = z0
    while z < z1:
        canvas.line((x, 0, z), (x, height, z), 0.09, post, "fence", 0.75 * light)
        z += 0.7 if z < 18 else 2.1
    for level in (0.25, 0.95):
        canvas.line((x, height * level, z0), (x, height * level, z1), 0.06, post, "fence", 0.7 * light)


def hedge(canvas: Canvas, side: int, x: float, z0: float, z1: float) -> None:
    """A clipped hedge with a ragged top."""
    rng, green = canvas.rng, tint(canvas.rng, GREENS[canvas.rng.integers(len(GREENS))], 8)
    height, light = rng.uniform(1.0, 2.4), canvas.facing(side)
    canvas.front(x, x + side * 1.5, 0, height, z0, green, "vegetation", light * 0.9)
    canvas.side(x, 0, height, z0, z1, green, "vegetation", light)
    for _ in range(6):
        z = rng.uniform(z0, z1)
        canvas.disc(x, height, z, 0.7, 0.3, tint(rng, green, 8), "vegetation", light)


def tree(canvas: Canvas, x: float, z: float, size: float = 1.0) -> None:
    """Trunk and a crown of overlapping leaf balls, darker below."""
    rng = canvas.rng
    height, radius = size * rng.uniform(3.6, 6.5), size * rng.uniform(1.3, 2.4)
    green = tint(rng, GREENS[rng.integers(len(GREENS))], 12)
    canvas.line((x, 0, z), (x, height * 0.75, z), 0.28 * size, (76, 62, 50), "vegetation")
    for ball in range(9):
        dx, dy = rng.normal(0, 0.55, 2) * radius
        light = 0.72 + 0.06 * ball + (0.12 if dx * canvas.light.sun_side > 0 else -0.05)
        canvas.disc(x + dx, height + 0.3 * radius + dy, z, 0.62 * radius, 0.52 * radius, tint(rng, green, 7), "vegetation", light)


def bush(canvas: Canvas, x: float, z: float) -> None:
    """A low shrub."""
    green = tint(canvas.rng, GREENS[canvas.rng.integers(len(GREENS))], 12)
    for _ in range(4):
        dx = canvas.rng.normal(0, 0.5)
        canvas.disc(x + dx, 0.5, z, 0.6, 0.55, tint(canvas.rng, green, 8), "vegetation", 0.95)


def lamp(canvas: Canvas, side: int, x: float, z: float) -> tuple[float, float, float]:
    """A street lamp; returns where its head is (column, row, distance) for the glow."""
    height, arm = canvas.rng.uniform(5.5, 8.0), -side * 1.6
    canvas.line((x, 0, z), (x, height, z), 0.14, STEEL, "pole")
    canvas.line((x, height, z), (x + arm, height + 0.25, z), 0.1, STEEL, "pole")
    lit = canvas.light.lit > 0.1
    canvas.disc(x + arm, height + 0.2, z, 0.35, 0.14, WARM if lit else (190, 190, 185), "pole", 1.6 if lit else 1.0)
    return (*canvas.project(x + arm, height + 0.2, z), z)


def pole(canvas: Canvas, x: float, z: float) -> None:
    """A bare mast or a bollard."""
    height = canvas.rng.choice((1.0, 4.0, 7.0))
    canvas.line((x, 0, z), (x, height, z), 0.13, tint(canvas.rng, (120, 118, 112), 14), "pole")


def traffic_light(canvas: Canvas, side: int, x: float, z: float) -> None:
    """A signal head on a mast, one lamp on."""
    canvas.line((x, 0, z), (x, 3.4, z), 0.13, STEEL, "pole")
    canvas.front(x - 0.22, x + 0.22, 2.5, 3.5, z, (34, 36, 34), "traffic light")
    on = canvas.rng.integers(3)
    for lens, colour in enumerate(((240, 50, 40), (250, 190, 40), (50, 220, 110))):
        canvas.disc(x, 3.32 - 0.32 * lens, z, 0.12, 0.12, colour, "traffic light", 1.0 if lens == on else 0.28)


def sign(canvas: Canvas, x: float, z: float) -> None:
    """A traffic sign on a post: a ring, a warning triangle, a blue disc or a yellow board."""
    rng, y = canvas.rng, canvas.rng.uniform(2.0, 2.7)
    canvas.line((x, 0, z), (x, y, z), 0.09, (140, 142, 144), "pole")
    kind, r = rng.integers(4), rng.uniform(0.32, 0.5)
    if kind == 0:
        canvas.disc(x, y, z, r, r, (205, 36, 36), "traffic sign")
        canvas.disc(x, y, z, 0.68 * r, 0.68 * r, (240, 240, 240), "traffic sign")
    elif kind == 1:
        canvas.shape([(x - r, y - 0.8 * r, z), (x + r, y - 0.8 * r, z), (x, y + r, z)], (205, 36, 36), "traffic sign")
        canvas.shape([(x - 0.6 * r, y - 0.58 * r, z), (x + 0.6 * r, y - 0.58 * r, z), (x, y + 0.6 * r, z)], (242, 240, 235), "traffic sign")
    elif kind == 2:
        canvas.disc(x, y, z, r, r, (36, 80, 190), "traffic sign")
    else:
        canvas.front(x - 1.6 * r, x + 1.6 * r, y - 0.7 * r, y + 0.7 * r, z, (235, 200, 40), "traffic sign")


def bin_(canvas: Canvas, x: float, z: float) -> None:
    """A litter bin: outside the 19 classes, so its label is ignore."""
    canvas.front(x - 0.3, x + 0.3, 0, 1.0, z, tint(canvas.rng, (70, 90, 80), 20), "void")
