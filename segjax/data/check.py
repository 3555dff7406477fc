"""Walk a whole data set and report everything that is wrong with it at once: the file, what it holds, the likely cause, the fix."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from segjax.data import check_example, parallel
from segjax.data.dataset import Dataset
from segjax.data.faults import KINDS, Fault
from segjax.data.label_spaces import LabelSpace
from segjax.data.pairing import partners
from segjax.typing import IGNORE


@dataclasses.dataclass
class Findings:
    """What a walk over a data set found."""

    label_space: LabelSpace
    examples: int = 0
    faults: list[Fault] = dataclasses.field(default_factory=list)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    """(height, width) -> number of images."""
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each train id over the set, int64 [256]; index 255 counts ignored ones."""
    images_with: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    """Images in which each train id occurs, int64 [256]."""

    @property
    def wrong(self) -> list[Fault]:
        """Everything that would make a run stop or learn something wrong, by kind."""
        return self._sorted(True)

    @property
    def hints(self) -> list[Fault]:
        """Suspicions that are no errors, by kind."""
        return self._sorted(False)

    @property
    def ok(self) -> bool:
        """Nothing would stop a training. Hints may remain."""
        return not self.wrong

    @property
    def never(self) -> tuple[str, ...]:
        """Classes that no label holds: their IoU cannot be scored, and a network cannot learn them. Empty when nothing is labelled."""
        if not self.pixels.any():
            return ()
        return tuple(name for index, name in enumerate(self.label_space.classes) if not self.pixels[index])

    def _sorted(self, wrong: bool) -> list[Fault]:
        order = list(KINDS)
        return sorted((fault for fault in self.faults if fault.wrong == wrong), key=lambda fault: order.index(fault.kind))


def check(
    dataset: Dataset, *, threads: int | None = None, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Findings:
    """Decode every example (or the first `limit`) on every core and collect what is wrong instead of stopping at the first error.

    dataset: any data set. Of a FolderDataset the files themselves are examined; build it with strict=False so that unpaired files are
    findings too. progress(done, total) is called in this thread after each example. Results do not depend on `threads`.
    """
    findings = Findings(dataset.label_space, faults=_unpaired(*getattr(dataset, "unpaired", ((), ()))))
    total = len(dataset) if limit is None else min(limit, len(dataset))
    for size, histogram, faults in parallel.in_order(check_example.examiner(dataset), total, threads=threads, progress=progress):
        findings.examples += 1
        findings.faults += faults
        if size:
            findings.sizes[tuple(size)] += 1
        if histogram is not None:
            findings.pixels += histogram
            findings.images_with += histogram > 0
    findings.faults += _of_the_set(findings) + _incomplete(dataset)
    return findings


def _unpaired(images, labels) -> list[Fault]:
    """Files without a partner, each with the partner that it may have under another name."""
    near, faults = partners(images, labels), []
    for name in images:
        other = near.get(name)
        if other is None:
            cause, fix = "the label is missing", "add it, or drop the image"
        elif other.lower() == name.lower():
            cause, fix = f"the label is called {other!r}: names differ in upper and lower case", "rename one of the two"
        else:
            cause, fix = f"the label may be {other!r}", "give both the same name, or write a list file"
        faults.append(Fault("unpaired", name, "image without a label", cause, fix))
    explained = set(near.values())
    alone = [name for name in labels if name not in explained]
    return faults + [
        Fault("unpaired", name, "label without an image", "the image is missing", "add it, or drop the label") for name in alone
    ]


def _of_the_set(findings: Findings) -> list[Fault]:
    """What only all labels together show."""

    def fault(found: str, cause: str, fix: str, wrong: bool = False) -> Fault:
        return Fault("set", "", found, cause, fix, wrong)

    faults, present = [], set(np.flatnonzero(findings.pixels).tolist())
    binary = sum(fault.kind == "label_binary" for fault in findings.faults)
    if present == {IGNORE} and not binary:
        fix = "set `encoding` to what they were written with"
        faults.append(fault("every pixel of every label is ignore", "the encoding does not fit these files", fix, True))
    elif binary and binary == findings.examples:
        fix = "write class ids instead of 255"
        faults.append(fault("every label holds 0 and 255 alone", "these look like binary masks, not class ids", fix, True))
    elif findings.never:
        cause = "too few examples, another encoding, or a data set without them"
        fix = "their IoU will be nan; a smaller label space leaves them out"
        faults.append(fault(f"classes that never occur: {', '.join(findings.never)}", cause, fix))
    if len(findings.sizes) > 1:
        sizes = ", ".join(f"{w}x{h} ({count})" for (h, w), count in findings.sizes.most_common(5))
        faults.append(fault(f"{len(findings.sizes)} image sizes: {sizes}", "mixed sources", "batches of whole images need data.resize"))
    return faults


def _incomplete(dataset: Dataset) -> list[Fault]:
    """A public data set of another size than published."""
    published = getattr(dataset, "published", None)
    if published in (None, len(dataset)):
        return []
    cause = "an incomplete download, or names that were left out" if len(dataset) < published else "files that are not part of it"
    return [Fault("set", "", f"{len(dataset)} examples, published are {published}", cause, "compare with the archive if it matters", False)]
