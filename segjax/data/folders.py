"""Images and labels in folders or list files, with an error that names the file for everything that goes wrong in practice."""

import pathlib

import numpy as np

from segjax.data import label_spaces
from segjax.data.dataset import Dataset, Example
from segjax.data.files import BadIds, SizeMismatch, read_image, read_label
from segjax.data.pairing import pair_folders, read_list, unpaired_message
from segjax.data.transforms import resize_image, resize_label
from segjax.errors import DataError


class FolderDataset(Dataset):
    """Pairs of image and label files.

    images: folder, searched with its sub-folders. labels: folder of label PNGs; None leaves the set unlabelled. Files pair by relative path
    without the suffixes of the public layouts (`_leftImg8bit`, `_gtFine_labelIds`, `_rgb_anon`, `_gt_labelTrainIds`, `_train_id`).
    file_list: a text file of "image label" lines, paths relative to it (or to `images`); a line of one word has no label.
    label_space, encoding: what a label's values mean (`label_spaces.decode_table`). include, exclude: keep or drop names by substring.
    resize: (height, width) of every example, image bilinear, label nearest. labelled=False never opens a label. cache: see Dataset.
    strict=False keeps the complete pairs and lists the rest in `unpaired` (images, labels), which `data check` prints.

    Images become RGB uint8 (grey, palette, RGBA and CMYK are converted, an EXIF rotation is applied); 16-bit images are refused.
    Raises DataError: nothing found, unpaired files (first 10 of both sides), and on reading: damaged file, size mismatch, bad ids.
    """

    def __init__(
        self,
        images: str | None = None,
        labels: str | None = None,
        *,
        label_space="cityscapes19",
        encoding: str | None = None,
        file_list: str | None = None,
        include=(),
        exclude=(),
        resize: tuple[int, int] | None = None,
        labelled: bool = True,
        cache: bool = False,
        strict: bool = True,
    ):
        super().__init__(cache)
        self.label_space = label_spaces.get(label_space)
        self.encoding = encoding or label_spaces.default_encoding(self.label_space)
        self.resize: tuple[int, int] | None = None
        if resize:
            height, width = resize
            self.resize = (height, width)
        self._table = label_spaces.decode_table(self.label_space, self.encoding)
        self._valid = label_spaces.valid_ids(self.label_space, self.encoding)
        self.unpaired: tuple[list[str], ...] = ([], [])
        if file_list:
            pairs, self.root = read_list(file_list, images, labelled)
        elif images:
            pairs, *unpaired = pair_folders(images, labels if labelled else None, encoding=self.encoding)
            self.root, self.unpaired = pathlib.Path(images), tuple(unpaired)
            if strict and any(unpaired):
                raise DataError(unpaired_message(images, labels, *unpaired))
        else:
            raise DataError("a folder data set needs `images` (a folder) or `file_list` (a text file of 'image label' lines)")
        include, exclude = _words(include), _words(exclude)
        chosen = [
            (image, label)
            for image, label in pairs
            if (not include or any(word in str(image.name) for word in include)) and not any(word in image.name for word in exclude)
        ]
        if not chosen:
            raise DataError(
                f"no image left in {file_list or images}: of {len(pairs)} found, include={include} exclude={exclude} keep none; "
                "check the filters"
            )
        self.labelled = labelled and any(label is not None for _, label in chosen)
        if self.labelled and (missing := [str(image) for image, label in chosen if label is None]):
            raise DataError(f"{len(missing)} images have no label in {file_list}, first {missing[:10]}: add them or set labelled=False")
        self.pairs = chosen

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return (
            f"FolderDataset({self.root}, {len(self)} examples, {self.label_space.name}, {self.encoding}, "
            f"resize={self.resize}, labelled={self.labelled})"
        )

    def raw_label(self, index: int) -> np.ndarray:
        """The label file's values before decoding, uint8 [H,W]. DataError unless it is one 8-bit channel (grey or palette)."""
        return read_label(self._label_path(index))

    def _name(self, index: int) -> str:
        """The image's path relative to the data set's folder, with forward slashes."""
        image = self.pairs[index][0]
        return image.relative_to(self.root).as_posix() if image.is_relative_to(self.root) else image.as_posix()

    def _image(self, index: int) -> np.ndarray:
        image = read_image(self.pairs[index][0])
        return resize_image(image, self.resize) if self.resize else image

    def _label(self, index: int) -> np.ndarray:
        path = self._label_path(index)
        label = self._decode(read_label(path), path)
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
            raw = read_label(label_path)
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
        found = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
        if not self._valid[found].all():
            raise BadIds(bad_ids_message(path, found, self._valid, self.label_space, self.encoding))
        return self._table[raw]


def bad_ids_message(path, found: np.ndarray, valid: np.ndarray, space: label_spaces.LabelSpace, encoding: str) -> str:
    """One line: the file, the ids found and expected, and the likely cause. found: sorted unique raw values; valid: bool [256]."""
    wrong = found[~valid[found]].tolist()
    if encoding != "labelId" and found.max() <= 33:
        cause = "these look like Cityscapes label ids: set encoding='labelId'"
    elif encoding == "labelId" and found.max() <= 65:
        cause = "these look like Mapillary ids: set encoding='mapillary'"
    elif not valid[found].any() or len(wrong) > 3:
        cause = "this looks like a colour or grey picture of the label: use the file that holds ids"
    else:
        cause = "fix the file, or choose the encoding that it was written with"
    expected = np.flatnonzero(valid).tolist()
    return (
        f"{path}: label ids {wrong[:12]} are out of range for {space.name} encoded as {encoding!r} "
        f"(found {found.tolist()[:20]}, expected {expected[0]}..{expected[-2]} or {expected[-1]}): {cause}"
    )


def _words(value) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
