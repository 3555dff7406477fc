"""ACDC (Sakaridis et al., ICCV 2021): 4,006 photographs of 1920x1080 in fog, at night, in rain and in snow."""

from collections.abc import Iterable

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

CONDITIONS = ("fog", "night", "rain", "snow")
SPLITS = ("train", "val", "test", "train_ref", "val_ref", "test_ref")
VAL_COUNTS = {"fog": 100, "night": 106, "rain": 100, "snow": 100}


class ACDC(FolderDataset):
    """`root/rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png` with `root/gt/<...>/*_gt_labelTrainIds.png`.

    condition: one of "fog", "night", "rain", "snow", several of them, or "all". split: "train", "val", "test" (no labels published); with
    "_ref", the same places in clear weather, which have no labels. Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "train", condition: "str | Iterable[str]" = "all", labelled: bool = True, **keywords):
        layout = Layout("ACDC", root, "rgb_anon_trainvaltest.zip and gt_trainval.zip of ACDC")
        layout.choice("split", split, SPLITS)
        wanted = CONDITIONS if condition == "all" else (condition,) if isinstance(condition, str) else tuple(condition)
        for one in wanted:
            layout.choice("condition", one, ("all", *CONDITIONS))
            layout.find(f"rgb_anon/{one}/{split}")
        labelled = labelled and split in ("train", "val")
        truth = layout.find("gt") if labelled else None
        folders = [f"{one}/{split}" for one in wanted]
        super().__init__(layout.find("rgb_anon"), truth, folders=folders, labelled=labelled, **{"encoding": "acdc", **keywords})
        self.published = sum(VAL_COUNTS[one] for one in wanted) if split == "val" else None
