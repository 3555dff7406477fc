"""Cityscapes (Cordts et al., CVPR 2016): 2048x1024 street scenes of 50 cities."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout
from segjax.errors import ConfigError

COUNTS = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}
FILES = {"labelIds": "labelId", "labelTrainIds": "cityscapes_trainId", "color": "cityscapes_color"}
"""Kind of label file -> encoding. labelTrainIds files exist only where somebody generated them."""


class Cityscapes(FolderDataset):
    """`root/leftImg8bit/<split>/<city>/*_leftImg8bit.png` with `root/gtFine/<split>/<city>/*_gtFine_labelIds.png`.

    split: "train", "val", "test" (no labels published) or "train_extra" (coarse labels alone). labels: which files, "labelIds",
    "labelTrainIds" or "color". coarse: gtCoarse instead of gtFine. Other keywords: FolderDataset.
    """

    def __init__(
        self, root: str, *, split: str = "train", labels: str = "labelIds", coarse: bool = False, labelled: bool = True, **keywords
    ):
        layout = Layout("Cityscapes", root, "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (or the coarse ones) of Cityscapes")
        layout.choice("split", split, COUNTS)
        encoding = FILES[layout.choice("labels", labels, FILES)]
        if coarse and split == "test":
            raise ConfigError("Cityscapes: there are no coarse labels of split='test': leave coarse=False")
        labelled = labelled and split != "test"
        truth = layout.find(f"{'gtCoarse' if coarse or split == 'train_extra' else 'gtFine'}/{split}") if labelled else None
        super().__init__(layout.find(f"leftImg8bit/{split}"), truth, labelled=labelled, **{"encoding": encoding, **keywords})
        self.published = COUNTS[split]
