"""Which label file belongs to which image: by folder layout or by list file."""

import pathlib

from segjax.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_IMAGE_TAGS = ("_leftImg8bit", "_rgb_anon", "_image")
_TRAIN_ID_TAGS = ("_gtFine_labelTrainIds", "_gtCoarse_labelTrainIds", "_gt_labelTrainIds", "_labelTrainIds", "_train_id")
_LABEL_ID_TAGS = ("_gtFine_labelIds", "_gtCoarse_labelIds", "_gt_labelIds", "_labelIds")
_OTHER_TAGS = ("_color", "_instanceIds", "_instanceTrainIds", "_invIds", "_train_color", "_invGray")

Pair = tuple[pathlib.Path, pathlib.Path | None]


def pair_folders(images: str, labels: str | None, *, encoding: str = "trainId") -> tuple[list[Pair], list[str], list[str]]:
    """Pair images with the labels of the same relative name: (pairs sorted by name, images without a label, labels without an image).

    Suffixes of the public layouts are ignored in the comparison. Where both label-id and train-id files lie side by side, encoding decides.
    DataError: a folder that is missing or empty, two files of one name.
    """
    found = _index(pathlib.Path(images), _IMAGE_TAGS, (), "image")
    if labels is None:
        return [(path, None) for _, path in sorted(found.items())], [], []
    wanted, unwanted = (_LABEL_ID_TAGS, _TRAIN_ID_TAGS) if encoding == "labelId" else (_TRAIN_ID_TAGS, _LABEL_ID_TAGS)
    truth = _index(pathlib.Path(labels), wanted + unwanted, unwanted, "label")
    alone, orphan = sorted(set(found) - set(truth)), sorted(set(truth) - set(found))
    return [(path, truth[key]) for key, path in sorted(found.items()) if key in truth], alone, orphan


def unpaired_message(images, labels, alone: list[str], orphan: list[str]) -> str:
    """One line naming the first 10 unpaired names of both sides and the likely cause."""
    folded = {name.lower() for name in orphan} & {name.lower() for name in alone}
    cause = "names differ in upper and lower case" if folded else "add the missing files or drop the others"
    return (
        f"{len(alone)} images of {images} have no label, first {alone[:10]}; "
        f"{len(orphan)} labels of {labels} have no image, first {orphan[:10]}: {cause}"
    )


def read_list(file_list: str, root: str | None = None, labelled: bool = True) -> tuple[list[Pair], pathlib.Path]:
    """Read "image label" lines, paths relative to `root` or to the list file's folder. Returns the pairs in file order and the root.

    Empty lines and lines that start with # are skipped; labelled=False ignores the second word, so that its file need not exist.
    DataError: no such file, no line, more than two words, files that do not exist (first 10).
    """
    path = pathlib.Path(file_list)
    if not path.is_file():
        raise DataError(f"{file_list} does not exist, expected a text file of 'image label' lines: check file_list")
    base = pathlib.Path(root) if root else path.parent
    pairs: list[Pair] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file_list} cannot be read as a text file of 'image label' lines ({error}): check file_list") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise DataError(f"{file_list}:{number} has {len(words)} words, expected 'image label' or 'image': {line.strip()[:80]!r}")
        pairs.append((base / words[0], base / words[1] if labelled and len(words) == 2 else None))
    if not pairs:
        raise DataError(f"{file_list} names no image: expected one 'image label' line for each example")
    missing = [[str(p) for p in side if p is not None and not p.is_file()] for side in zip(*pairs, strict=True)]
    if any(missing):
        raise DataError(
            f"{file_list} names files that do not exist: {len(missing[0])} images, first {missing[0][:10]}; "
            f"{len(missing[1])} labels, first {missing[1][:10]}: paths are relative to {base}"
        )
    return pairs, base


def _index(folder: pathlib.Path, strip: tuple[str, ...], drop: tuple[str, ...], kind: str) -> dict[str, pathlib.Path]:
    """Relative name without layout suffixes -> file. Files tagged with `drop` count only where the folder has no other for that name."""
    if not folder.is_dir():
        raise DataError(f"{kind} folder {folder} does not exist: check the path")
    found: dict[str, pathlib.Path] = {}
    second: dict[str, pathlib.Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.is_dir() or (kind == "label" and path.stem.endswith(_OTHER_TAGS)):
            continue
        tag = next((tag for tag in strip if path.stem.endswith(tag)), "")
        key = (path.relative_to(folder).parent / path.stem.removesuffix(tag)).as_posix()
        into = second if tag and tag in drop else found
        if key in into:
            raise DataError(f"two {kind} files share one name: {into[key]} and {path}: keep one of them")
        into[key] = path
    found = second | found
    if not found:
        raise DataError(f"{kind} folder {folder} holds no image file ({', '.join(IMAGE_SUFFIXES)}): check the path")
    return found
