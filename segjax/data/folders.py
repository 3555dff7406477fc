"""Images and labels in folders or list files, with an error that names the file for everything that goes wrong in practice."""

import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from segjax.data import encodings, files, label_spaces
from segjax.data.dataset import Dataset, Example
from segjax.data.files import BadIds, SizeMismatch, read_image, read_image_size
from segjax.data.pairing import Choice, Listed, pair_folders, read_list, unpaired_message
from segjax.data.transforms import Size, checked, fitted, resize_image, resize_label
from segjax.errors import DataError


class FolderDataset(Dataset):
    """Pairs of image and label files.

    images: folder, searched with its sub-folders, or with those in `folders` alone. labels: folder of label PNGs; None leaves the set
    unlabelled. Files pair by relative path without the suffixes of the public layouts (`_leftImg8bit`, `_gtFine_labelIds`, `_rgb_anon`,
    `_gt_labelTrainIds`, `_train_id`). file_list: a text file of "image label" lines, paths relative to it (or to `images`), or such pairs
    themselves; an image alone has no label. label_space, encoding: what a label's values mean (`encodings.get`: a name, a map, or a JSON
    file of ids or colours). include, exclude: keep or drop names by substring. names: keep these alone, file names with or without suffix,
    or a text file of them. resize: (height, width) of every example, or the length of its shorter edge, image bilinear, label nearest.
    labelled=False never opens a label. cache: see Dataset. strict=False keeps the complete pairs and lists the rest in `unpaired` (images,
    labels), which `data check` prints.

    Images become RGB uint8 (grey, palette, RGBA and CMYK are converted, an EXIF rotation is applied); 16-bit images are refused.
    Raises DataError: nothing found, unpaired files (first 10 of both sides), and on reading: damaged file, size mismatch, bad ids.
    """

    published: int | None = None
    """How many examples the published split has, where that is known: a reader says so."""

    def __init__(
        self,
        images: "str | pathlib.Path | None" = None,
        labels: "str | pathlib.Path | None" = None,
        *,
        label_space="cityscapes19",
        encoding=None,
        file_list: "str | Listed | None" = None,
        folders: Iterable[str] = (),
        include=(),
        exclude=(),
        names: "str | Iterable[str] | None" = None,
        resize: Size | None = None,
        labelled: bool = True,
        cache: bool = False,
        strict: bool = True,
    ):
        super().__init__(cache)
        self.label_space = label_spaces.get(label_space)
        self.stored = encodings.get(encoding, self.label_space)
        self.encoding = self.stored.name
        self.resize = checked(resize, "resize")
        self._table = encodings.decode_table(self.label_space, self.stored)
        self._valid = encodings.valid_ids(self.label_space, self.stored)
        self.unpaired: tuple[list[str], ...] = ([], [])
        choose = Choice(include, exclude, names)
        if file_list:
            pairs, self.root = read_list(file_list, images, labelled)
        elif images:
            pairs, *unpaired = pair_folders(images, labels if labelled else None, kind=self.stored.files, folders=tuple(folders))
            self.root, self.unpaired = (
                pathlib.Path(images),
                tuple([n for n in side if choose(pathlib.PurePath(n).name)] for side in unpaired),
            )
            if any(self.unpaired) and (strict or not pairs):
                raise DataError(unpaired_message(images, labels, *self.unpaired))
        else:
            raise DataError("a folder data set needs `images` (a folder) or `file_list` (a text file of 'image label' lines)")
        chosen = [(image, label) for image, label in pairs if choose(image.name)]
        if not chosen:
            raise DataError(f"no image left in {self.root}: of {len(pairs)} found, {choose} keep none; check the filters")
        self.labelled = labelled and any(label is not None for _, label in chosen)
        if self.labelled and (missing := [str(image) for image, label in chosen if label is None]):
            where = file_list if isinstance(file_list, str) else self.root
            raise DataError(f"{len(missing)} images have no label in {where}, first {missing[:10]}: add them or set labelled=False")
        self.pairs = chosen

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.root}, {len(self)} examples, {self.label_space.name}, {self.encoding}, "
            f"resize={self.resize}, labelled={self.labelled})"
        )

    def encoded_image(self, index: int) -> bytes | None:
        if self.resize:
            return None
        return files.plain_rgb_bytes(self.pairs[self._position(index)][0])

    def raw_label(self, index: int) -> np.ndarray:
        """The label file's values before decoding, uint8 [H,W]; of a colour encoding, the indices into `stored.colours`."""
        return self._read_raw(self._label_path(self._position(index)))

    def _read_raw(self, path: pathlib.Path) -> np.ndarray:
        if self.stored.colours:
            return files.read_colour_label(path, self.stored.colours, self.encoding)
        return files.read_wide_label(path) if self.stored.wide else files.read_label(path)

    def _name(self, index: int) -> str:
        """The image's path relative to the data set's folder, with forward slashes."""
        image = self.pairs[index][0]
        return image.relative_to(self.root).as_posix() if image.is_relative_to(self.root) else image.as_posix()

    def _image(self, index: int) -> np.ndarray:
        image = read_image(self.pairs[index][0])
        return resize_image(image, self.resize) if self.resize else image

    def _image_size(self, index: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        own = read_image_size(self.pairs[index][0])
        return own if self.resize is None else fitted(own, self.resize)

    def _label(self, index: int) -> np.ndarray:
        path = self._label_path(index)
        label = self._decode(self._read_raw(path), path)
        return resize_label(label, self.resize) if self.resize else label

    def _label_path(self, index: int) -> pathlib.Path:
        image, label = self.pairs[index]
        if label is None:
            raise DataError(f"{image} has no label: set the labels folder, or labelled=False")
        return label

    def _load(self, index: int) -> Example:
        image_path = self.pairs[index][0]
        image = read_image(image_path)
        example = {"image": image, "name": self._name(index)}
        if self.labelled:
            label_path = self._label_path(index)
            raw = self._read_raw(label_path)
            if raw.shape != image.shape[:2]:
                raise SizeMismatch(
                    f"{label_path} is {raw.shape[1]}x{raw.shape[0]} but {image_path} is {image.shape[1]}x{image.shape[0]}: "
                    f"a label must have its image's size; fix or exclude the pair"
                )
            example["label"] = self._decode(raw, label_path)
        if self.resize:
            example["image"] = resize_image(image, self.resize)
            if self.labelled:
                example["label"] = resize_label(example["label"], self.resize)
        return example

    def _decode(self, raw: np.ndarray, path: pathlib.Path) -> np.ndarray:
        found = np.flatnonzero(Image.fromarray(raw).histogram())  # 5 times as fast as numpy's bincount
        if not self._valid[found].all():
            raise BadIds(bad_ids_message(path, found, self._valid, self.label_space, self.encoding))
        return np.take(self._table, raw)


def bad_ids_message(path, found: np.ndarray, valid: np.ndarray, space: label_spaces.LabelSpace, encoding: str) -> str:
    """One line: the file, the ids found and expected, and the likely cause. found: sorted unique raw values; valid: bool [256]."""
    wrong = found[~valid[found]].tolist()
    largest = int(found[found < 255].max(initial=0))
    if encoding not in ("labelId", "gta5") and largest <= 34:
        cause = "these look like Cityscapes label ids: set encoding='labelId'"
    elif encoding in ("labelId", "gta5") and largest <= 65:
        cause = "these look like Mapillary ids: set encoding='mapillary_v1.2'"
    elif encoding == "mapillary_v1.2" and largest <= 123:
        cause = "these look like Mapillary v2.0 ids: set encoding='mapillary_v2.0'"
    elif not valid[found].any() or len(wrong) > 3:
        cause = "this looks like a colour or grey picture of the label: use the file that holds ids"
    else:
        cause = "fix the file, or choose the encoding that it was written with (a JSON file of ids for your own)"
    return (
        f"{path}: label ids {wrong[:12]} are out of range for {space.name} encoded as {encoding!r} "
        f"(found {found.tolist()[:20]}, expected {_ranges(np.flatnonzero(valid).tolist())}): {cause}"
    )


def _ranges(ids: list[int]) -> str:
    """Sorted ids in words: 0..18 or 255."""
    runs: list[list[int]] = []
    for value in ids:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return " or ".join(f"{a}..{b}" if b > a else str(a) for a, b in runs)
