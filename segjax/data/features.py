"""Images with the features that a promptable segmenter's encoder gave them: reads what `segjax embed` of a SAM leaves.

DIR/features/NAME.npy    float16 or float32 [V,h,w,C] of an image and, with V = 2, of its mirror image (features of a mirror image are not
                         mirrored features); written whole or not at all
DIR/features.json        written last: which network, its weights' sha256, image size, shape, type, and the sha256 of all that
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.data import pseudo, sealed
from segjax.data.dataset import Dataset, Example
from segjax.data.relabelled import Relabelled
from segjax.errors import DataError

SUMMARY, FOLDER, KEY = "features.json", "features", "sam_features"


class WithFeatures(Relabelled):
    """The images of `dataset`, unlabelled, each with "sam_features" [V,h,w,C], read from disk where they are used.

    A batch then holds `target_sam_features` [B,h,w,C], those of the mirror image where the image was mirrored; crops must be the whole
    images, so `data.crop` their size. In a config: `{"make": "segjax.data.features:WithFeatures", "dataset": {"make": ...}, "features":
    DIR, "weights": FILE}`.
    weights: the segmenter's file, refused unless the features are of it; "" does not look. DataError, one line: no folder, features that
    are not whole, of other weights, or without an image of `dataset`.
    """

    def __init__(self, dataset: Dataset, features: "str | pathlib.Path", *, weights: str = "", cache: bool = False):
        super().__init__(dataset, cache)
        self.labelled = False
        self.root = pathlib.Path(features)
        self.summary = read_summary(self.root)
        if weights:
            check_weights(self.root, self.summary, {pathlib.Path(weights).name: _sha256(pathlib.Path(weights))})
        self._paths = [self.root / FOLDER / file_name(dataset.name(index)) for index in range(len(dataset))]
        if missing := [path for path in self._paths if not path.is_file()]:
            told = f"{len(missing)} of {len(self._paths)} images of {dataset!r} have none, first {missing[0]}"
            raise DataError(f"{self.root}: {told}: run `segjax embed` over the same folder of images")

    def __repr__(self) -> str:
        return f"WithFeatures({self.dataset!r}, features {self.summary['sha256'][:16]})"

    def features(self, index: int) -> np.ndarray:
        """[V,h,w,C], mapped: only what is looked at is read. DataError: another shape or type than features.json says."""
        return read(self._paths[self._position(index)], self.summary)

    def _load(self, index: int) -> Example:
        return {"image": self._image(index), "name": self._name(index), KEY: self.features(index)}


def file_name(name: str) -> str:
    """The file below `features/` of an image of that name."""
    return str(pathlib.PurePosixPath(pseudo.file_name(name)).with_suffix(".npy"))


def read(path: pathlib.Path, summary: Mapping[str, Any]) -> np.ndarray:
    """One image's features, mapped. DataError: damaged, or another shape or type than `summary` says."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}): delete it and run `segjax embed` again") from None
    expected = tuple(summary["shape"]), summary["dtype"]
    if (found.shape, str(found.dtype)) != expected:
        raise DataError(f"{path} is {found.dtype}{list(found.shape)}, expected {expected[1]}{list(expected[0])}: delete it, embed again")
    return found


def read_summary(root: pathlib.Path) -> dict[str, Any]:
    """features.json of a whole set, `sealed.read`."""
    return sealed.read(root / SUMMARY, "features", "make it with `segjax embed` of a SAM, which goes on where it stopped")


def check_weights(root: pathlib.Path, summary: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """DataError unless the features in `root` are of the weights with these hashes, by file name (of which only the hashes count)."""
    if sorted(summary["weights"].values()) != sorted(hashes.values()):
        names = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in summary["weights"].items())
        given = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in hashes.items())
        raise DataError(
            f"{root}: its features are of other weights ({names}) than those given ({given}): make them anew, in another folder"
        )


def whole_image(example: Mapping[str, Any], size: tuple[int, int], whole: bool, mirrored: bool) -> np.ndarray:
    """The features of an example as it was cut, to a crop of `size`: all of it or its mirror image. DataError: something else."""
    kept, name = example[KEY], example.get("name", "an image")
    if not whole:
        height, width = example["image"].shape[:2]
        told = f"the crop {size[1]}x{size[0]} is another part or size of {width}x{height}"
        raise DataError(
            f"{name}: its features are of the whole image and {told}: set data.crop to the images' size, without resize and scale"
        )
    if mirrored and len(kept) == 1:
        raise DataError(f"{name}: no features of the mirror image: embed with --flips, or set flip=False for this role (data.target_crops)")
    return kept[int(mirrored)]


def _sha256(path: pathlib.Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"weights={path}: cannot be read ({error.strerror}): expected the segmenter's file") from None
