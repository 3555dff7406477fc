"""The integers and colours that public data sets write into their label files, each as raw value -> train id.

A raw value that is legal but no class maps to 255. Cityscapes ids: cityscapesScripts labels.py. SYNTHIA and Mapillary v1.2: the maps on
which the public domain-adaptation code agrees (DAFormer, DiGA, HRDA). The choices made here are said beside their table.
"""

from segjax.typing import IGNORE

LABEL_IDS: dict[int, int] = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True))
"""Cityscapes label ids, which GTA5 uses as palette indices. 0-34 are legal (34: license plate)."""

SYNTHIA_IDS: dict[int, int] = dict(zip((3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11), range(19), strict=True))
"""SYNTHIA ids 0-22. Terrain (16), truck (18) and train (20) never occur in RAND_CITYSCAPES."""

MAPILLARY_V12 = (
    {13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11}
    | {20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18}
)  # fmt: skip
"""Mapillary Vistas v1.2 ids 0-65. Road takes general lane markings and manholes, sidewalk takes curbs; crosswalks, service lanes, parking,
bike lanes and curb cuts are ignored, as are sign backs and sign frames."""

MAPILLARY_V20 = (
    {21: 0, 74: 0, **dict.fromkeys((*range(35, 45), *range(46, 56), 57, 58), 0)}  # road, manhole, markings but for crosswalks (45, 56)
    | {4: 1, 24: 1, 27: 2, 28: 2, 12: 3, 5: 4, 85: 5, 88: 5, **dict.fromkeys(range(90, 96), 6)}
    | {99: 7, 100: 7, 101: 7, 103: 7, 64: 8, 63: 9, 61: 10, 30: 11, 31: 11, 32: 12, 33: 12, 34: 12}
    | {108: 13, 114: 14, 107: 15, 111: 16, 110: 17, 105: 18}
)
"""Mapillary Vistas v2.0 ids 0-123. No project prescribes a map: this is v1.2's carried over by class name, and Cityscapes' own definitions
where v2.0 splits or adds a class: every lane marking but crosswalks is road; a garage is building; a person group is person. Ignored: pole
groups (Cityscapes does not score them), vehicle groups (mixed), ambiguous or rear signs, road shoulders, medians, driveways, aisles."""

CITYSCAPES_COLORS = {
    (128, 64, 128): 0,
    (244, 35, 232): 1,
    (70, 70, 70): 2,
    (102, 102, 156): 3,
    (190, 153, 153): 4,
    (153, 153, 153): 5,
    (250, 170, 30): 6,
    (220, 220, 0): 7,
    (107, 142, 35): 8,
    (152, 251, 152): 9,
    (70, 130, 180): 10,
    (220, 20, 60): 11,
    (255, 0, 0): 12,
    (0, 0, 142): 13,
    (0, 0, 70): 14,
    (0, 60, 100): 15,
    (0, 80, 100): 16,
    (0, 0, 230): 17,
    (119, 11, 32): 18,
    **dict.fromkeys(
        ((0, 0, 0), (0, 20, 50), (20, 20, 20), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180))
        + ((150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110)),
        IGNORE,
    ),
}
"""`_gtFine_color.png`. Two ids that are not scored share a scored class's colour there: polegroup is pole, license plate is car."""

_CAMVID_CLASSES = (
    ((128, 128, 128),),
    ((128, 0, 0), (192, 0, 128), (0, 128, 64), (64, 0, 64), (64, 192, 0)),  # building, archway, bridge, tunnel, wall
    ((192, 192, 128), (0, 0, 64)),  # pole, traffic cone
    ((128, 64, 128), (128, 0, 192), (192, 0, 64), (255, 69, 0)),  # road, two lane markings, SegNet's own road marking
    ((60, 40, 222), (0, 0, 192), (64, 192, 128), (128, 128, 192)),  # SegNet's pavement, sidewalk, parking block, road shoulder
    ((128, 128, 0), (192, 192, 0)),  # tree, other vegetation
    ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # sign, other text, traffic light
    ((64, 64, 128),),
    ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # car, SUV, truck or bus, train, other moving
    ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # pedestrian, child, pram, animal
    ((0, 128, 192), (192, 0, 192)),  # bicyclist, motorcycle
)
CAMVID_COLORS = {colour: train for train, colours in enumerate(_CAMVID_CLASSES) for colour in colours} | {(0, 0, 0): IGNORE}
"""CamVid in colour, both the 32 original classes and SegNet's 12, merged to the 11 classes that papers score."""
