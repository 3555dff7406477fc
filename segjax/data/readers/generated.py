"""A folder of generated images with its manifest, and pseudo-labels for them if there are any."""

import hashlib
import json
import pathlib

from segjax.data.folders import FolderDataset
from segjax.data.layout import Layout
from segjax.errors import ConfigError, DataError


class Generated(FolderDataset):
    """The images that `root/manifest.jsonl` names, in its order: one JSON object a line with "image", a path below root, beside whatever
    the generator noted ("prompt", "class", "seed", ...), kept in `self.manifest`.

    prefix: the first so many, so that sets of growing size contain each other. labels: a folder, below root or not, of label PNGs of the
    same relative names; "" leaves the set unlabelled. Other keywords: FolderDataset (of its filters, `names`, `include`, `exclude`).
    DataError: no manifest, one that is cut off, a set whose generation was stopped (generation.json), images that are not there.
    """

    def __init__(
        self, root: str, *, labels: str = "", prefix: int | None = None, manifest: str = "manifest.jsonl", labelled: bool = True, **keywords
    ):
        layout = Layout("generated images", root, "a folder that `segjax generate` wrote")
        file = layout.root / manifest
        _finished(layout.root)
        entries = _read(file)
        if missing := [entry["image"] for entry in entries if not (layout.root / entry["image"]).is_file()]:
            told = f"{len(missing)} of {len(entries)} images, first {missing[0]}"
            raise DataError(f"{file} names {told}, that are not in {layout.root}: copy the whole folder, or generate again")
        if prefix is not None and not 0 < prefix <= len(entries):
            raise ConfigError(f"generated images: prefix={prefix}: expected 1 to {len(entries)}, as many as {file} names")
        entries = entries[:prefix]
        listed = [(entry["image"],) for entry in entries]
        if labels and labelled:
            folder = pathlib.Path(labels) if pathlib.Path(labels).is_dir() else layout.find(labels)
            listed = [(image, str((folder.absolute() / image).with_suffix(".png"))) for (image,) in listed]
        super().__init__(layout.root, file_list=listed, labelled=labelled, **keywords)
        kept = {str(image) for image, _ in self.pairs}
        self.manifest = [entry for entry in entries if str(layout.root / entry["image"]) in kept]

    def __repr__(self) -> str:
        """By what was generated, not by where it lies: a run that was moved is still the same run."""
        said = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]
        about = f"{self.label_space.name}, {self.encoding}, resize={self.resize}, labelled={self.labelled}"
        return f"Generated({self.root.name}, {len(self)} examples, manifest {said}, {about})"


def _finished(root: pathlib.Path) -> None:
    """DataError for a folder whose generator notes that more images were wanted."""
    try:
        wanted = json.loads((root / "generation.json").read_text()).get("unfinished")
    except (OSError, ValueError, AttributeError):
        return
    if wanted:
        raise DataError(f"{root} is half a set, the generation of its {wanted} images was stopped: start the same `segjax` command again")


def _read(path: pathlib.Path) -> list[dict]:
    """The manifest's objects. DataError names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f'{path} cannot be read ({error}), expected one JSON object with "image" a line: set root, or `manifest`'
        ) from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number} is not JSON ({error}): was the generation cut off? remove the line") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DataError(f'{path}:{number} has no "image", expected {{"image": "file below {path.parent}", ...}}: {line.strip()[:80]}')
        entries.append(entry)
    if not entries:
        raise DataError(f"{path} names no image: expected one JSON object a line")
    return entries
