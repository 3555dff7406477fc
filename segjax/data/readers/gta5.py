"""GTA5 (Richter et al., ECCV 2016): 24,966 game frames, labels as palette indices that are Cityscapes label ids."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout
from segjax.errors import ConfigError

BROKEN = ("15188", "17705")
"""Pairs whose image and label do not fit; every careful project leaves them out."""
SPLITS = {"all": range(1, 24967), "train": range(1, 20001), "test": range(22501, 24967)}
"""Frame numbers. train and test: the rule of the FDA + contrastive code (20,000 and 2,466). Another list: `names=FILE`."""


class GTA5(FolderDataset):
    """`root/images/00001.png` .. `24966.png` with `root/labels/<same>.png`.

    split: "all" (what most papers train on), "train" or "test". broken=True keeps the pairs 15188 and 17705. Frames are 1914x1052 or
    1914x1046, so batches need `resize` (720x1280 in most papers) or crops. Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "all", broken: bool = False, labelled: bool = True, exclude=(), names=None, **keywords):
        layout = Layout("GTA5", root, "the images and labels archives of GTA5")
        numbers = SPLITS[layout.choice("split", split, SPLITS)]
        if names is not None and split != "all":
            raise ConfigError(f"GTA5: split={split!r} and names were both given: `names` is a split of its own, leave split at 'all'")
        if split != "all":
            names = [f"{number:05d}" for number in numbers]
        exclude = ((exclude,) if isinstance(exclude, str) else tuple(exclude)) + (() if broken else BROKEN)
        truth = layout.find("labels") if labelled else None
        keywords = {"encoding": "gta5", **keywords}
        super().__init__(layout.find("images"), truth, labelled=labelled, exclude=exclude, names=names, **keywords)
        self.published = len(numbers) - (0 if broken else sum(int(name) in numbers for name in BROKEN))
