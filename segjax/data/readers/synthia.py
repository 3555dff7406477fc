"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9,400 rendered frames of 1280x760, labels in the first channel of 16-bit PNGs."""

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout

DERIVED = "synthia_mapped_to_cityscapes"


class Synthia(FolderDataset):
    """`root/RGB/0000000.png` .. `0009399.png` with `root/GT/LABELS/<same>.png`, root being RAND_CITYSCAPES.

    split: "train", the only one there is. Without GT/LABELS, the 8-bit copies in `synthia_mapped_to_cityscapes` are read (of FDA, BDL and
    DACS; they hold SYNTHIA's own ids too); derived=True asks for those. Terrain, truck and train do not occur: with the default label
    space, read the means over 16 or 13 classes; label_space="synthia16" has 16 outputs. Other keywords: FolderDataset.
    """

    published = 9400

    def __init__(self, root: str, *, split: str = "train", derived: bool = False, labelled: bool = True, **keywords):
        layout = Layout("SYNTHIA", root, "SYNTHIA-RAND-CITYSCAPES (its folder RAND_CITYSCAPES)")
        layout.choice("split", split, ("train",))
        truth = layout.find(*((DERIVED,) if derived else ("GT/LABELS", DERIVED))) if labelled else None
        super().__init__(layout.find("RGB"), truth, labelled=labelled, **{"encoding": "synthia", **keywords})
