"""What a pseudo-label stage keeps on disk while it works, so that a run that was killed goes on with the images that are missing.

DIR/labels/NAME.png             the result, written whole or not at all
DIR/partial/raw/NAME.png        RGB: label, then the two bytes of its confidence's bin; until the thresholds of a rule are known
DIR/partial/done/NAME.npz       an image's sums, written after its label: it is finished
DIR/partial/histogram-P.npy     of the images that process P looked after
DIR/partial/strips/INDEX.png    a row of the picture
"""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from segjax.data import pseudo
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE
from segjax.verbs.folder import PARTIAL

BINS, COARSE = 1 << 16, 100
"""Bins of the histogram from which thresholds come, and of the one that people see."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """Of one image or of many. K classes; pixels that no class answers are counted in `every` alone.

    histogram: int64 [K,COARSE], confidences by class before thresholds. kept: int64 [K], pixels that passed. pixels: all of them.
    every, confident: int64 [K,K+1], rows = truth, the last column for pixels without an answer: before thresholds, and of those that
    passed (there it is 0); zeros where there is no truth.
    """

    histogram: np.ndarray
    kept: np.ndarray
    pixels: np.ndarray
    every: np.ndarray
    confident: np.ndarray

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(getattr(self, field.name) + getattr(other, field.name) for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of the images of a data set. names: their label files below `labels/` (`pseudo.file_names`). classes: K."""

    place: pathlib.Path
    names: list[str]
    classes: int

    def label(self, index: int) -> pathlib.Path:
        return self.place / pseudo.LABELS / self.names[index]

    def raw(self, index: int) -> pathlib.Path:
        return self.place / PARTIAL / "raw" / self.names[index]

    def sums(self, index: int) -> pathlib.Path:
        return (self.place / PARTIAL / "done" / self.names[index]).with_suffix(".npz")

    def strip(self, index: int) -> pathlib.Path:
        return self.place / PARTIAL / "strips" / f"{index:06d}.png"

    def histogram(self, process: int) -> pathlib.Path:
        return self.place / PARTIAL / f"histogram-{process}.npy"

    def write_raw(self, index: int, label: np.ndarray, bins: np.ndarray) -> None:
        """Keeps an image's label and bins until thresholds are known."""
        pixels = np.stack([label, (bins >> 8).astype(np.uint8), (bins & 255).astype(np.uint8)], -1)
        write_png(self.raw(index), pixels, level=1)

    def read_raw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(label uint8 [H,W], bins uint16 [H,W]) of `write_raw`. DataError for a file that a crash of the machine left damaged: it goes."""
        try:
            pixels = np.asarray(Image.open(self.raw(index)))
        except (OSError, SyntaxError) as error:  # PIL says a broken PNG is the latter
            self.raw(index).unlink()
            raise DataError(f"{self.raw(index)} was damaged ({error}) and is gone: the same command makes it again") from None
        return pixels[..., 0], pixels[..., 1].astype(np.uint16) << 8 | pixels[..., 2]

    def write_histogram(self, process: int, indices: Iterable[int]) -> None:
        """Counts the pixels of those images by class and bin, int64 [K,BINS]."""
        total = np.zeros(self.classes * BINS, np.int64)
        for index in indices:
            total += count(*self.read_raw(index), self.classes, BINS).ravel()
        buffer = io.BytesIO()
        np.save(buffer, total.reshape(self.classes, BINS))
        write(self.histogram(process), buffer.getvalue())

    def kept(self, label: np.ndarray, bins: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The label where its bin reaches that of its class in `needed` (uint32 [K]), 255 elsewhere."""
        passes = (label < self.classes) & (bins >= needed[np.minimum(label, self.classes - 1)])
        return np.where(passes, label, IGNORE).astype(np.uint8)

    def finish(self, index: int, label: np.ndarray, bins: np.ndarray, kept: np.ndarray, truth: np.ndarray | None) -> None:
        """Writes an image's label, `kept`, and then its sums."""
        content = write_png(self.label(index), kept, level=6)
        coarse = (bins.astype(np.uint32) * COARSE >> 16).astype(np.uint16)
        sums = Sums(
            histogram=count(label, coarse, self.classes, COARSE),
            kept=np.bincount(kept[kept < self.classes], minlength=self.classes).astype(np.int64),
            pixels=np.asarray(label.size, np.int64),
            every=_confusion(truth, label, self.classes),
            confident=_confusion(None if truth is None else np.where(kept < self.classes, truth, IGNORE), label, self.classes),
        )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, sha256=hashlib.sha256(content).hexdigest(), shape=label.shape, **vars(sums))
        write(self.sums(index), buffer.getvalue())

    def total(self) -> tuple[Sums, str, dict[str, int]]:
        """(sums over all images, the text of labels.sha256, how many images have which size)."""
        total, lines, sizes = None, [], {}
        for index, name in enumerate(self.names):
            with np.load(self.sums(index)) as stored:
                part = Sums(**{field.name: stored[field.name] for field in dataclasses.fields(Sums)})
                lines.append(f"{stored['sha256']}  {pseudo.LABELS}/{name}\n")
                height, width = stored["shape"].tolist()
            total = part if total is None else total + part
            sizes[f"{width}x{height}"] = sizes.get(f"{width}x{height}", 0) + 1
        assert total is not None
        return total, "".join(lines), sizes


def count(label: np.ndarray, bins: np.ndarray, classes: int, size: int) -> np.ndarray:
    """Pixels by class and bin, int64 [classes,size]; ids outside the classes count nowhere."""
    known = label < classes
    place = label[known].astype(np.int64) * size + bins[known]
    return np.bincount(place, minlength=classes * size).reshape(classes, size)


def write_png(path: pathlib.Path, pixels: np.ndarray, *, level: int) -> bytes:
    """Writes a PNG whole or not at all and returns its bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    write(path, buffer.getvalue())
    return buffer.getvalue()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes whole or not at all. ConfigError when the folder cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}): make room or choose another folder; the same command goes on"
        ) from None


def _confusion(truth: np.ndarray | None, label: np.ndarray, classes: int) -> np.ndarray:
    """int64 [K,K+1]: rows = truth (ids outside the classes count nowhere), the last column for pixels without an answer."""
    if truth is None:
        return np.zeros((classes, classes + 1), np.int64)
    counted = truth < classes
    place = truth[counted].astype(np.int64) * (classes + 1) + np.minimum(label[counted], classes)
    return np.bincount(place, minlength=classes * (classes + 1)).reshape(classes, classes + 1)
