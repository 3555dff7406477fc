"""Dark Zurich (Sakaridis et al., ICCV 2019): Zurich by night and twilight, 1920x1080, the target of day-to-night adaptation."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

COUNTS = {("train", "night"): 2416, ("train", "twilight"): 2920, ("val", "night"): 50, ("test", "night"): 151}


class DarkZurich(FolderDataset):
    """`root/rgb_anon/<split>/<time>/<sequence>/*_rgb_anon.png`; `root/gt/val/night/<...>_gt_labelTrainIds.png` for the 50 of val.

    split: "train" (no labels exist), "val" or "test" (no labels published). time: "night", "twilight" or "day"; val and test are night.
    Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "train", time: str = "night", labelled: bool = True, **keywords):
        layout = Layout("Dark Zurich", root, "the train, val and test archives of Dark Zurich")
        layout.choice("split", split, ("train", "val", "test"))
        layout.choice("time", time, ("night", "twilight", "day") if split == "train" else ("night",))
        labelled = labelled and split == "val"
        truth = layout.find("gt/val/night") if labelled else None
        images = layout.find(f"rgb_anon/{split}/{time}")
        super().__init__(images, truth, labelled=labelled, **{"encoding": "cityscapes_trainId", **keywords})
        self.published = COUNTS.get((split, time))
