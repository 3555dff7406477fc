"""Which label file belongs to which image: by folder layout or by list file."""

import bisect
import os
import pathlib
from collections.abc import Iterable, Sequence

from segjax.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_IMAGE_TAGS = ("_leftImg8bit", "_rgb_anon", "_image")
_LABEL_TAGS = {
    "trainId": ("_gtFine_labelTrainIds", "_gtCoarse_labelTrainIds", "_gt_labelTrainIds", "_labelTrainIds", "_train_id"),
    "labelId": ("_gtFine_labelIds", "_gtCoarse_labelIds", "_gt_labelIds", "_labelIds"),
    "color": ("_gtFine_color", "_gtCoarse_color", "_gt_labelColor", "_train_color", "_color", "_L"),
}
_OTHER_TAGS = ("_instanceIds", "_instanceTrainIds", "_invIds", "_invGray")

Pair = tuple[pathlib.Path, pathlib.Path | None]


def pair_folders(
    images: "str | pathlib.Path", labels: "str | pathlib.Path | None", *, kind: str = "trainId", folders: tuple[str, ...] = ()
) -> tuple[list[Pair], list[str], list[str]]:
    """Pair images with the labels of the same relative name: (pairs sorted by name, images without a label, labels without an image).

    Suffixes of the public layouts are ignored in the comparison. Where several kinds of label lie side by side ("trainId", "labelId" and
    "color" files), `kind` decides; a folder that has none of the kind is an error, but for "trainId", which takes label ids then.
    folders: look into these sub-folders of both sides alone. DataError: a folder that is missing or empty, two files of one name.
    """
    found = _index(pathlib.Path(images), folders, _IMAGE_TAGS, (), "image")
    if labels is None:
        return [(path, None) for _, path in sorted(found.items())], [], []
    truth = _labels(pathlib.Path(labels), folders, kind)
    alone, orphan = sorted(set(found) - set(truth)), sorted(set(truth) - set(found))
    return [(path, truth[key]) for key, path in sorted(found.items()) if key in truth], alone, orphan


def _labels(folder: pathlib.Path, folders: tuple[str, ...], kind: str) -> dict[str, pathlib.Path]:
    """Name -> label file of one kind. Kinds are never mixed: a train-id file among label ids would be legal and wrong."""
    try:
        return _of_kind(folder, folders, kind)
    except NoImages as error:
        for other in _LABEL_TAGS:
            try:
                found = _of_kind(folder, folders, other)
            except NoImages:
                continue
            if (kind, other) == ("trainId", "labelId"):
                return found
            what = f"{other} files such as {min(found.values()).name}"
            raise DataError(f"label folder {folder} has no {kind} files, but {what}: choose that encoding") from error
        raise


def _of_kind(folder: pathlib.Path, folders: tuple[str, ...], kind: str) -> dict[str, pathlib.Path]:
    drop = _OTHER_TAGS + tuple(tag for other, tags in _LABEL_TAGS.items() for tag in tags if other != kind and tag != "_L")
    return _index(folder, folders, _LABEL_TAGS[kind], drop, "label")


def partners(alone: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """For unpaired names, which of the other side's may be meant: the same in another case, or this one with a tag ('7' -> '7_mask')."""
    folded, ordered, found = {other.lower(): other for other in others}, sorted(others), {}
    for name in alone:
        place = bisect.bisect_left(ordered, name)
        longer = ordered[place] if place < len(ordered) else ""
        if name.lower() in folded:
            found[name] = folded[name.lower()]
        elif longer.startswith(name) and longer[len(name) :][:1] in ("_", "-", ".", " "):
            found[name] = longer
    return found


def unpaired_message(images, labels, alone: list[str], orphan: list[str]) -> str:
    """One line naming the first 10 unpaired names of both sides and the likely cause."""
    near, cause = partners(alone, orphan), "add the missing files or drop the others"
    for name, other in list(near.items())[:1]:
        cause = f"the label of {name!r} may be {other!r}: give both the same name, or write a list file"
        if name.lower() == other.lower():
            cause = f"names differ in upper and lower case ({name!r}, {other!r}): rename one side"
    return (
        f"{len(alone)} images of {images} have no label, first {alone[:10]}; "
        f"{len(orphan)} labels of {labels} have no image, first {orphan[:10]}: {cause}"
    )


Listed = Iterable[tuple[str, ...]]
"""(image,) or (image, label) of each example, as paths."""


def read_list(
    file_list: "str | Listed", root: "str | pathlib.Path | None" = None, labelled: bool = True
) -> tuple[list[Pair], pathlib.Path]:
    """Read "image label" lines, paths relative to `root` or to the list file's folder. Returns the pairs in file order and the root.

    file_list: a text file, in which empty lines and lines that start with # are skipped; or the paths themselves. labelled=False ignores
    the label, so that its file need not exist. DataError: no such file, no line, more than two words, files that do not exist (first 10).
    """
    if isinstance(file_list, str):
        listed, name, base = _parse_list(file_list), file_list, pathlib.Path(root) if root else pathlib.Path(file_list).parent
    else:
        listed, name, base = list(file_list), f"the list of {root}", pathlib.Path(root or ".")
    if not listed:
        raise DataError(f"{name} names no image: expected one 'image label' line for each example")
    pairs: list[Pair] = [(base / words[0], base / words[1] if labelled and len(words) == 2 else None) for words in listed]
    missing = [[str(p) for p in side if p is not None and not p.is_file()] for side in zip(*pairs, strict=True)]
    if any(missing):
        raise DataError(
            f"{name} names files that do not exist: {len(missing[0])} images, first {missing[0][:10]}; "
            f"{len(missing[1])} labels, first {missing[1][:10]}: paths are relative to {base}"
        )
    return pairs, base


def _parse_list(file_list: str) -> list[tuple[str, ...]]:
    path = pathlib.Path(file_list)
    if not path.is_file():
        raise DataError(f"{file_list} does not exist, expected a text file of 'image label' lines: check file_list")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file_list} cannot be read as a text file of 'image label' lines ({error}): check file_list") from error
    listed = []
    for number, line in enumerate(lines, 1):
        words = tuple(line.split())
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise DataError(f"{file_list}:{number} has {len(words)} words, expected 'image label' or 'image': {line.strip()[:80]!r}")
        listed.append(words)
    return listed


class NoImages(DataError):
    """A folder without a single image file of the kind that was asked for."""


def _index(
    folder: pathlib.Path, below: tuple[str, ...], tags: tuple[str, ...], drop: tuple[str, ...], kind: str
) -> dict[str, pathlib.Path]:
    """Relative name without the suffixes `tags` -> file; files that end in one of `drop` do not count."""
    found: dict[str, pathlib.Path] = {}
    for start in (folder / name for name in below) if below else (folder,):
        if not start.is_dir():
            raise DataError(f"{kind} folder {start} does not exist: check the path")
        for directory, _, files in os.walk(start, followlinks=True):
            place = pathlib.Path(directory)
            prefix = place.relative_to(folder).as_posix() + "/" if place != folder else ""
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                # "._0001.png" is what macOS leaves beside an unpacked file, no image.
                if suffix.lower() not in IMAGE_SUFFIXES or stem.endswith(drop) or file.startswith("."):
                    continue
                key = prefix + stem.removesuffix(next((tag for tag in tags if stem.endswith(tag)), ""))
                if key in found:
                    raise DataError(f"two {kind} files share one name: {found[key]} and {place / file}: keep one of them")
                found[key] = place / file
    if not found:
        where = f" ({', '.join(below)})" if below else ""
        raise NoImages(f"{kind} folder {folder}{where} holds no image file ({', '.join(IMAGE_SUFFIXES)}): check the path")
    return found


class Choice:
    """Which file names a data set keeps: include and exclude by substring, names by whole stem."""

    def __init__(self, include, exclude, names):
        self.include, self.exclude = _words(include), _words(exclude)
        self.names = None if names is None else frozenset(pathlib.PurePath(name).stem for name in _lines(names))

    def __call__(self, name: str) -> bool:
        wanted = not self.include or any(word in name for word in self.include)
        listed = self.names is None or pathlib.PurePath(name).stem in self.names
        return wanted and listed and not any(word in name for word in self.exclude)

    def __str__(self) -> str:
        listed = "" if self.names is None else f" names={sorted(self.names)[:3]}... ({len(self.names)})"
        return f"include={self.include} exclude={self.exclude}{listed}"


def _words(value) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _lines(names: "str | Iterable[str]") -> list[str]:
    """File names as given, or the first word of each line of the text file that they stand in."""
    if not isinstance(names, str):
        return [str(name) for name in names]
    try:
        return [line.split()[0] for line in pathlib.Path(names).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"names={names} cannot be read as a text file of image names ({error}): check the path") from error
