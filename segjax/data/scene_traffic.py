"""What moves in a street: cars, trucks, buses, trams, people, riders and their two-wheelers."""

from segjax.data.scene_canvas import Canvas, tint

PAINT = ((196, 198, 200), (40, 42, 48), (120, 124, 130), (150, 30, 34), (36, 64, 120), (222, 222, 218), (70, 92, 70), (190, 160, 60))
GLASS = (48, 58, 68)
TYRE = (26, 26, 28)
CLOTHES = ((44, 48, 70), (150, 46, 52), (60, 60, 62), (196, 180, 150), (70, 100, 140), (90, 110, 70), (210, 200, 196), (120, 70, 110))
SKIN = ((224, 178, 150), (160, 110, 84), (110, 76, 58))


def _pick(canvas: Canvas, colours, spread: float = 10):
    return tint(canvas.rng, colours[canvas.rng.integers(len(colours))], spread)


def _ground_shadow(canvas: Canvas, x, half, z0, z1, ground: str) -> None:
    dark = (92 * canvas.light.shadow,) * 3
    canvas.shape([(x - half, 0, z0), (x + half, 0, z0), (x + half, 0, z1), (x - half, 0, z1)], dark, ground)


def _lights(canvas: Canvas, x, half, y, z, oncoming: bool, name: str) -> None:
    lit = canvas.light.lit > 0.1
    colour = ((255, 250, 220) if lit else (225, 228, 230)) if oncoming else ((255, 60, 50) if lit else (160, 30, 30))
    for dx in (-0.8 * half, 0.8 * half):
        canvas.disc(x + dx, y, z, 0.16, 0.1, colour, name, 1.5 if lit else 1.0)


def car(canvas: Canvas, x: float, z: float, *, oncoming: bool = False, ground: str = "road") -> None:
    """A car along the street, z its nearest end: the side that the camera sees, then the end."""
    rng, paint, half = canvas.rng, _pick(canvas, PAINT), canvas.rng.uniform(0.82, 0.95)
    length, height = rng.uniform(3.8, 4.9), rng.uniform(1.35, 1.75)
    belt, far = 0.58 * height, z + length
    _ground_shadow(canvas, x, half + 0.15, z - 0.1, far, ground)
    flank = x - half if x > 0 else x + half
    light = canvas.facing(1 if x > 0 else -1)
    for wheel in (z + 0.75, far - 0.85):
        canvas.side(flank, 0, 0.5, wheel - 0.32, wheel + 0.32, TYRE, "car")
    canvas.side(flank, 0.28, belt, z, far, paint, "car", 0.85 * light)
    roof = 0.82 * half
    inner = x - roof if x > 0 else x + roof
    window = [(flank, belt, z + 0.3), (inner, height, z + 0.9), (inner, height, far - 1.4), (flank, belt, far - 0.7)]
    canvas.shape(window, GLASS, "car", light)
    lid = [(x - roof, height, z + 0.9), (x + roof, height, z + 0.9), (x + roof, height, far - 1.4), (x - roof, height, far - 1.4)]
    canvas.shape(lid, paint, "car", 1.1)
    for dx in (-0.75 * half, 0.75 * half):
        canvas.front(x + dx - 0.13, x + dx + 0.13, 0, 0.4, z, TYRE, "car")
    canvas.front(x - half, x + half, 0.25, belt, z, paint, "car", 0.95)
    top = [(x - 0.95 * half, belt, z), (x + 0.95 * half, belt, z), (x + roof, height, z + 0.5), (x - roof, height, z + 0.5)]
    canvas.shape(top, paint, "car", 1.0)
    low, high = (0.84 * half, belt + 0.05), (0.9 * roof, height - 0.1)
    glass = [(x - low[0], low[1], z), (x + low[0], low[1], z), (x + high[0], high[1], z + 0.5), (x - high[0], high[1], z + 0.5)]
    canvas.shape(glass, GLASS, "car", 1.1)
    canvas.front(x - 0.25, x + 0.25, 0.42, 0.55, z, (225, 225, 215), "car")
    _lights(canvas, x, half, belt - 0.16, z, oncoming, "car")


def car_across(canvas: Canvas, x: float, z: float) -> None:
    """A car that crosses ahead, seen from its side."""
    paint, length = _pick(canvas, PAINT), canvas.rng.uniform(3.8, 4.8)
    a, b = x - length / 2, x + length / 2
    _ground_shadow(canvas, x, length / 2, z - 0.2, z + 1.6, "road")
    canvas.shape([(a + 0.7, 0.8, z), (a + 1.3, 1.45, z), (b - 1.5, 1.45, z), (b - 0.8, 0.8, z)], paint, "car", 1.05)
    canvas.shape([(a + 0.9, 0.82, z), (a + 1.35, 1.36, z), (b - 1.55, 1.36, z), (b - 1.05, 0.82, z)], GLASS, "car")
    canvas.front(a, b, 0.28, 0.85, z, paint, "car", 0.95)
    for wheel in (a + 0.8, b - 0.8):
        canvas.disc(wheel, 0.33, z, 0.33, 0.33, TYRE, "car")
        canvas.disc(wheel, 0.33, z, 0.17, 0.17, (130, 132, 136), "car")


def _box(canvas: Canvas, x, half, height, z, far, paint, name, roof=None) -> None:
    """The two visible sides of a large vehicle."""
    _ground_shadow(canvas, x, half + 0.2, z - 0.2, far, "road")
    flank = x - half if x > 0 else x + half
    canvas.side(flank, 0.35, height, z, far, paint, name, 0.85 * canvas.facing(1 if x > 0 else -1))
    canvas.front(x - half, x + half, 0.35, height, z, paint, name, 0.95)
    for dx in (-0.8 * half, 0.8 * half):
        canvas.front(x + dx - 0.18, x + dx + 0.18, 0, 0.55, z, TYRE, name)


def truck(canvas: Canvas, x: float, z: float, *, oncoming: bool = False) -> None:
    """A lorry: a plain cargo box from behind, a cab with its windscreen when oncoming."""
    rng, far = canvas.rng, z + canvas.rng.uniform(6, 10)
    cargo = _pick(canvas, ((214, 212, 205), (170, 60, 50), (60, 90, 140), (200, 180, 90), (110, 130, 110)))
    height = rng.uniform(2.9, 3.7)
    _box(canvas, x, 1.22, height, z, far, cargo, "truck")
    if oncoming:
        canvas.front(x - 1.2, x + 1.2, 0.35, 2.7, z - 0.1, _pick(canvas, PAINT), "truck")
        canvas.front(x - 1.05, x + 1.05, 1.6, 2.45, z - 0.1, GLASS, "truck")
    else:
        canvas.line((x, 0.5, z), (x, height - 0.1, z), 0.05, tuple(0.7 * c for c in cargo), "truck")
        canvas.front(x - 1.2, x + 1.2, 0.35, 0.6, z, (60, 60, 62), "truck")
    _lights(canvas, x, 1.2, 0.8, z - 0.1, oncoming, "truck")


def bus(canvas: Canvas, x: float, z: float, *, oncoming: bool = False) -> None:
    """A city bus with a band of windows and a destination board."""
    far, paint = z + 11, _pick(canvas, ((200, 60, 46), (230, 190, 50), (60, 120, 170), (226, 226, 222), (70, 140, 90)))
    _box(canvas, x, 1.25, 3.05, z, far, paint, "bus")
    _window_band(canvas, x, 1.25, z, far, 1.35, 2.45, "bus")
    canvas.front(x - 1.1, x + 1.1, 1.2, 2.5, z, GLASS, "bus", 1.1)
    canvas.front(x - 0.8, x + 0.8, 2.6, 2.9, z, (30, 30, 30), "bus")
    canvas.front(x - 0.6, x + 0.6, 2.68, 2.82, z, (255, 180, 60), "bus")
    _lights(canvas, x, 1.2, 0.8, z, oncoming, "bus")


def train(canvas: Canvas, x: float, z: float) -> None:
    """A tram on its rails: long, two-coloured, with a pantograph."""
    far, paint = z + 26, _pick(canvas, ((206, 200, 60), (180, 40, 44), (90, 150, 90), (70, 110, 180)))
    _box(canvas, x, 1.2, 3.3, z, far, paint, "train")
    flank = x - 1.2 if x > 0 else x + 1.2
    canvas.side(flank, 1.2, 3.3, z, far, (232, 230, 222), "train", 0.9 * canvas.facing(1 if x > 0 else -1))
    _window_band(canvas, x, 1.2, z, far, 1.4, 2.6, "train")
    canvas.front(x - 1.2, x + 1.2, 2.7, 3.3, z, (232, 230, 222), "train")
    canvas.shape([(x - 1.05, 1.4, z), (x + 1.05, 1.4, z), (x + 0.9, 2.65, z), (x - 0.9, 2.65, z)], GLASS, "train", 1.2)
    canvas.line((x - 0.7, 3.3, z + 5), (x, 4.3, z + 5), 0.06, (60, 60, 60), "train")
    canvas.disc(x, 3.0, z, 0.2, 0.15, (255, 230, 160), "train")
    _lights(canvas, x, 1.1, 0.85, z, True, "train")


def _window_band(canvas: Canvas, x, half, z, far, low, high, name) -> None:
    flank = x - half if x > 0 else x + half
    colour = (230, 210, 150) if canvas.light.lit > 0.1 else GLASS
    start = z + 0.6
    while start < far - 1:
        canvas.side(flank, low, high, start, start + 1.3, colour, name)
        start += 1.6


def person(canvas: Canvas, x: float, z: float, *, name: str = "person", ground: str = "sidewalk", lift: float = 0.0) -> None:
    """A walker: legs in stride, coat, head. As "rider" the same figure sits, lifted above its two-wheeler."""
    rng, size = canvas.rng, canvas.rng.uniform(0.88, 1.08)
    coat, legs, stride = _pick(canvas, CLOTHES), _pick(canvas, ((40, 44, 60), (70, 66, 60), (96, 92, 90))), rng.uniform(0.05, 0.28)
    hip, shoulder, head = lift + 0.85 * size, lift + 1.45 * size, lift + 1.62 * size
    if not lift:
        canvas.disc(x, 0.0, z, 0.4, 0.05, (92 * canvas.light.shadow,) * 3, ground)
    for foot in (-stride, stride):
        canvas.line((x + foot, lift * 0.4, z), (x + foot * 0.3, hip, z), 0.17 * size, legs, name)
    canvas.shape([(x - 0.2, hip, z), (x + 0.2, hip, z), (x + 0.25, shoulder, z), (x - 0.25, shoulder, z)], coat, name)
    for arm in (-0.27, 0.27):
        canvas.line((x + arm, hip, z), (x + arm * 0.9, shoulder, z), 0.1, tuple(0.85 * c for c in coat), name)
    canvas.disc(x, head + 0.02, z, 0.12, 0.15, SKIN[rng.integers(3)], name)
    canvas.disc(x, head + 0.1, z, 0.13, 0.09, (200, 200, 60) if name == "rider" else (60, 46, 36), name)


def two_wheeler(canvas: Canvas, x: float, z: float, *, motor: bool, ridden: bool, across: bool = False, ground: str = "road") -> None:
    """A bicycle or motorcycle, seen from behind or (across) from the side, with or without its rider."""
    name, half = ("motorcycle", 0.7) if motor else ("bicycle", 0.55)
    frame = _pick(canvas, ((40, 40, 44), (150, 30, 30), (40, 70, 130), (180, 180, 60)))
    canvas.disc(x, 0.0, z, half if across else 0.3, 0.05, (92 * canvas.light.shadow,) * 3, ground)
    if across:
        for wheel in (-half, half):
            canvas.disc(x + wheel, 0.34, z, 0.34, 0.34, TYRE, name)
            canvas.disc(x + wheel, 0.34, z, 0.2, 0.2, (112, 112, 112), name)
        canvas.shape([(x - half, 0.34, z), (x + half, 0.34, z), (x + 0.6 * half, 0.95, z), (x - 0.4 * half, 0.85, z)], frame, name)
    else:
        wide = 0.16 if motor else 0.08
        canvas.disc(x, 0.4, z, wide, 0.4, TYRE, name)
        canvas.front(x - wide - 0.05, x + wide + 0.05, 0.5, 1.0 if motor else 0.85, z, frame, name)
        canvas.line((x - 0.33, 1.05, z), (x + 0.33, 1.05, z), 0.07, (50, 50, 52), name)
    if ridden:
        person(canvas, x, z, name="rider", lift=0.35)
