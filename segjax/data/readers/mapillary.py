"""Mapillary Vistas (Neuhold et al., ICCV 2017), versions 1.2 (66 ids) and 2.0 (124 ids): 25,000 street photographs of many sizes."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

SPLITS = {"train": "training", "val": "validation", "test": "testing"}
COUNTS = {"train": 18000, "val": 2000, "test": 5000}
VERSIONS = ("1.2", "2.0")


class Mapillary(FolderDataset):
    """`root/<training|validation>/images/ID.jpg` with `root/<...>/[v1.2/ or v2.0/]labels/ID.png`, palette PNGs of native ids.

    split: "train", "val" or "test" (no labels published). version: of the labels; the 2.0 download holds both. How the native classes
    become Cityscapes': `encoding_tables.MAPILLARY_V12` and `MAPILLARY_V20`; another choice is a JSON of ids as `encoding`. Sizes differ,
    so batches need `resize` or crops. Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "train", version: str = "1.2", labelled: bool = True, **keywords):
        layout = Layout("Mapillary Vistas", root, f"Mapillary Vistas v{version}")
        folder = SPLITS[layout.choice("split", split, SPLITS)]
        layout.choice("version", version, VERSIONS)
        labelled = labelled and split != "test"
        # Only the 1.2 download has a labels folder without a version above it.
        plain = (f"{folder}/labels",) if version == "1.2" else ()
        truth = layout.find(f"{folder}/v{version}/labels", *plain) if labelled else None
        keywords = {"encoding": f"mapillary_v{version}", **keywords}
        super().__init__(layout.find(f"{folder}/images"), truth, labelled=labelled, **keywords)
        self.published = COUNTS[split]
