"""Walk a whole data set and report everything that is wrong with it at once, with file names and likely causes."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from segjax.data.files import BadIds, SizeMismatch
from segjax.data.label_spaces import LabelSpace
from segjax.errors import DataError
from segjax.typing import IGNORE


@dataclasses.dataclass
class Findings:
    """What a walk over a data set found. Every problem is (file name, message)."""

    label_space: LabelSpace
    examples: int = 0
    unpaired_images: list[str] = dataclasses.field(default_factory=list)
    unpaired_labels: list[str] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    size_mismatch: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    bad_ids: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    all_ignored: list[str] = dataclasses.field(default_factory=list)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """(height, width) -> number of images."""
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each train id over the set, int64 [256]; index 255 counts ignored ones."""
    images_with: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    """Images in which each train id occurs, int64 [256]."""

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Everything that would stop a training, as (file name, message)."""
        alone = [(name, "image without a label") for name in self.unpaired_images]
        orphan = [(name, "label without an image") for name in self.unpaired_labels]
        return alone + orphan + self.unreadable + self.size_mismatch + self.bad_ids

    @property
    def ok(self) -> bool:
        """Nothing would stop a training. Hints may remain."""
        return not self.problems

    @property
    def never(self) -> tuple[str, ...]:
        """Classes that no label holds: their IoU cannot be scored, and a network cannot learn them. Empty when nothing is labelled."""
        if not self.pixels.any():
            return ()
        return tuple(name for index, name in enumerate(self.label_space.classes) if not self.pixels[index])

    @property
    def hints(self) -> list[str]:
        """Suspicions that are no errors, one line each."""
        found = []
        if self.never:
            found.append(f"classes that never occur: {', '.join(self.never)}")
        if len(self.sizes) > 1:
            sizes = ", ".join(f"{w}x{h} ({count})" for (h, w), count in self.sizes.most_common(5))
            found.append(f"{len(self.sizes)} image sizes: {sizes}; evaluation in batches needs data.resize")
        if self.all_ignored:
            found.append(
                f"{len(self.all_ignored)} labels are ignore everywhere, first {self.all_ignored[:10]}: wrong encoding or empty masks?"
            )
        present = set(np.flatnonzero(self.pixels).tolist())
        if present and present <= {0, IGNORE}:
            found.append("labels hold nothing but 0 and 255: these look like binary masks, not class ids")
        return found


def check(dataset, *, threads: int = 8, limit: int | None = None, progress: Callable[[int, int], None] | None = None) -> Findings:
    """Read every example (or the first `limit`) in parallel and collect what is wrong instead of stopping at the first error.

    dataset: any data set; build a FolderDataset with strict=False so that unpaired files are findings too. progress(done, total) is called
    in this thread after each example. Results do not depend on `threads`.
    """
    images, labels = getattr(dataset, "unpaired", ((), ()))
    findings = Findings(dataset.label_space, unpaired_images=list(images), unpaired_labels=list(labels))
    total = len(dataset) if limit is None else min(limit, len(dataset))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for index, (name, outcome) in enumerate(pool.map(lambda i: _examine(dataset, i), range(total))):
            _record(findings, name, outcome)
            if progress:
                progress(index + 1, total)
    return findings


def _examine(dataset, index: int) -> tuple[str, "DataError | tuple"]:
    """One example's name and either its error or (image size, label histogram or None); never its pixels, which would fill the memory."""
    try:
        example = dataset[index]
    except DataError as error:
        return dataset.name(index) if hasattr(dataset, "name") else str(index), error
    label = example.get("label")
    return example["name"], (example["image"].shape[:2], None if label is None else np.bincount(label.ravel(), minlength=256))


def _record(findings: Findings, name: str, outcome) -> None:
    findings.examples += 1
    if isinstance(outcome, DataError):
        kind = {SizeMismatch: findings.size_mismatch, BadIds: findings.bad_ids}.get(type(outcome), findings.unreadable)
        kind.append((name, str(outcome)))
        return
    size, histogram = outcome
    findings.sizes[tuple(size)] += 1
    if histogram is None:
        return
    findings.pixels += histogram
    findings.images_with += histogram > 0
    if histogram[IGNORE] == histogram.sum():
        findings.all_ignored.append(name)
