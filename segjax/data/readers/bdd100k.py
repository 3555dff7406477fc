"""BDD100K semantic segmentation (Yu et al., CVPR 2020), the "10K" images of 1280x720; masks hold Cityscapes train ids."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

COUNTS = {"train": 7000, "val": 1000, "test": 2000}


class BDD100K(FolderDataset):
    """New layout `root/images/10k/<split>/ID.jpg` with `root/labels/sem_seg/masks/<split>/ID.png`; the old one, found by itself, is
    `root/[seg/]images/<split>/ID.jpg` with `root/[seg/]labels/<split>/ID_train_id.png` (or `gtFine/<split>`, as DiGA has it).

    split: "train", "val" or "test" (no labels published). Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "train", labelled: bool = True, **keywords):
        layout = Layout("BDD100K", root, "the 10K images and the segmentation labels of BDD100K")
        layout.choice("split", split, COUNTS)
        labelled = labelled and split != "test"
        images = layout.find(f"images/10k/{split}", f"seg/images/{split}", f"images/{split}")
        masks = tuple(f"{part}/{split}" for part in ("labels/sem_seg/masks", "seg/labels", "labels", "gtFine"))
        truth = layout.find(*masks) if labelled else None
        super().__init__(images, truth, labelled=labelled, **{"encoding": "bdd100k", **keywords})
        self.published = COUNTS[split]
