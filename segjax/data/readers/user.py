"""A folder of your own: images, labels and one JSON file that says what the labels mean."""

from segjax.data import encodings
from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout
from segjax.errors import ConfigError

FIELDS = ("label_space", "encoding")


class User(FolderDataset):
    """`root/images/[<split>/]...` with `root/labels/[<split>/]...`, and `root/segjax.json`.

    segjax.json: {"label_space": "cityscapes19", "encoding": ...}, both optional, or the map alone: {"7": "road", "0": null} of raw ids or
    {"#804080": "road", "#000000": null} of colours (`encodings.get`). Classes that no space has: "label_space": {"lane": "#ff0000", ...}
    (`label_spaces.get`). meaning: another such file. The keywords label_space and encoding win over the file. split: a sub-folder of both;
    "" reads everything. Other keywords: FolderDataset.
    """

    def __init__(self, root: str, *, split: str = "", meaning: str = "", labelled: bool = True, **keywords):
        layout = Layout("user folder", root, "a folder with images/ and labels/")
        images = layout.find(f"images/{split}" if split else "images")
        truth = layout.find(f"labels/{split}" if split else "labels") if labelled else None
        file = meaning or (str(layout.root / "segjax.json") if (layout.root / "segjax.json").is_file() else "")
        super().__init__(images, truth, labelled=labelled, **{**(_read(file) if file else {}), **keywords})


def _read(file: str) -> dict:
    """The keywords that a JSON file gives: its fields, or itself as the map."""
    found = encodings.read_json(file)
    if not found or not set(found) <= set(FIELDS):
        if set(found) & set(FIELDS):
            raise ConfigError(f"{file} has the keys {', '.join(found)}, expected {' and '.join(FIELDS)} alone, or a map of ids or colours")
        return {"encoding": found}
    return found
