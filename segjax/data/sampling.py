"""Which record each training element reads: shuffled epochs, rare-class and class-balanced sampling, exact shares of several parts.

An order is a pure function of the element's position and of a generator that is seeded with (seed, position), so any worker, host or
restarted run that asks for element i gets the same answer, and no order keeps a state.
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

from segjax.data import statistics
from segjax.data.dataset import Dataset
from segjax.data.statistics import Statistics
from segjax.errors import ConfigError, DataError


class Wanted(NamedTuple):
    """A crop should hold more than `pixels` pixels of class `class_id`; it is redrawn up to `redraws` times until it does."""

    class_id: int
    pixels: float
    redraws: int


class Draw(NamedTuple):
    """The record that an element reads, and what its crop should hold."""

    index: int
    wanted: Wanted | None = None


class Order(Protocol):
    """Which record element `position` reads; rng is seeded with the position. `another` stands in for a draw that cannot be read."""

    def __call__(self, position: int, rng: np.random.Generator) -> Draw: ...

    def another(self, draw: Draw, rng: np.random.Generator) -> Draw:
        """A fresh draw of the same kind: the same part of a mixture, the same wanted class."""
        ...


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Every record once an epoch, each epoch in an order of its own, without end."""

    length: int
    seed: int

    def __call__(self, position: int, rng: np.random.Generator) -> Draw:
        epoch, place = divmod(position, self.length)
        return Draw(int(_permutation(self.length, self.seed, epoch)[place]))

    def another(self, draw: Draw, rng: np.random.Generator) -> Draw:
        return draw._replace(index=int(rng.integers(self.length)))


@functools.lru_cache(maxsize=16)  # the epochs that a run's streams are in; 25,000 records take a third of a millisecond
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=(seed << 64) | epoch)).permutation(length)


@functools.cache
def _say(line: str) -> None:
    """Prints a line once a process: the crops of one batch ask for the same order."""
    print(line, flush=True)


class ClassOrder:
    """Draws a class, then an image among those with more than `min_pixels` pixels of it, both anew for every element."""

    def __init__(self, statistics: Statistics, sampling: "ClassSampling"):
        """DataError when no class can be drawn; a class that cannot be is named in a printed line."""
        classes, least = statistics.label_space.classes, sampling.min_pixels
        probabilities = statistics.rare_class_probabilities(sampling.temperature)
        self._holders = [np.flatnonzero(statistics.counts[:, k] > least) for k in range(len(classes))]
        can_be = np.array([len(holders) > 0 for holders in self._holders])
        self._drawn = np.flatnonzero(can_be & (probabilities > 0))
        said = f"class sampling: no image has more than {least} pixels of"
        if not len(self._drawn):
            raise DataError(f"{said} any class: lower data.sampling.min_pixels")
        if lost := [classes[k] for k in np.flatnonzero(~can_be & (statistics.totals > 0))]:
            _say(f"{said} {', '.join(lost)}: never drawn (data.sampling.min_pixels below {least} keeps them)")
        self.probabilities = np.zeros(len(classes))
        self.probabilities[self._drawn] = probabilities[self._drawn] / probabilities[self._drawn].sum()
        self._bounds = np.cumsum(self.probabilities[self._drawn])
        self._pixels = least * sampling.min_crop_ratio
        self._redraws = sampling.redraws if sampling.min_crop_ratio > 0 else 0

    def __call__(self, position: int, rng: np.random.Generator) -> Draw:
        place = int(np.searchsorted(self._bounds, rng.random(), side="right"))
        chosen = int(self._drawn[min(place, len(self._drawn) - 1)])  # rounding may leave the last bound just below 1
        return self.another(Draw(-1, Wanted(chosen, self._pixels, self._redraws)), rng)

    def another(self, draw: Draw, rng: np.random.Generator) -> Draw:
        assert draw.wanted is not None  # every draw of this order has one
        holders = self._holders[draw.wanted.class_id]
        return draw._replace(index=int(holders[rng.integers(len(holders))]))


Count = Callable[[Dataset, str], Statistics]
"""(data set, its sampling's `statistics` path or "") -> its class statistics."""


def count_labels(dataset: Dataset, path: str, *, folder: "pathlib.Path | None" = None, write: bool = True) -> Statistics:
    """A data set's class statistics: from `path`; else from FOLDER/HASH/stats.json when that is still true of it; else counted now.

    folder: where counts are kept for the next start (`write`: by this process). DataError: a path that holds other data, a bad label.
    """
    if path:
        return statistics.load(path, dataset)
    own = folder / hashlib.sha256(repr(dataset).encode()).hexdigest()[:12] if folder else None
    if own and (found := statistics.load_current(own, dataset)):
        return found
    _say(f"class sampling: counting {len(dataset)} labels of {dataset!r} (data.sampling.statistics names a file instead)")
    counted = statistics.compute(dataset)
    if own and write:
        statistics.save(counted, own, dataset)
    return counted


@dataclasses.dataclass(frozen=True)
class ClassSampling:
    """How classes are drawn; `rare_class` and `class_balanced` make it and say what the fields mean."""

    temperature: float
    min_pixels: int
    min_crop_ratio: float
    redraws: int
    statistics: str

    def __post_init__(self):
        if not self.temperature > 0:
            raise ConfigError(f"data.sampling.temperature={self.temperature}: expected a positive number, e.g. 0.01")
        if self.min_pixels < 0 or self.min_crop_ratio < 0 or self.redraws < 0:
            raise ConfigError("data.sampling: min_pixels, min_crop_ratio and redraws must not be negative")


def rare_class(
    *, temperature: float = 0.01, min_pixels: int = 3000, min_crop_ratio: float = 0.5, redraws: int = 10, statistics: str = ""
) -> ClassSampling:
    """Rare-class sampling: class c with P(c) = softmax((1 - f_c) / temperature), an image uniformly among those with > min_pixels of c.

    Its crop (not the image) is redrawn up to `redraws` times until it holds more than min_pixels * min_crop_ratio pixels of c; ratio 0
    takes the first one, 2.0 is HRDA's for crops of 1024. statistics: a file of `segjax data stats` or of DAFormer; "" counts the labels at
    the first start. min_pixels holds at the size that the file, or the data set, has its labels; the crop's pixels are its own.
    Source: DAFormer, section 3.3 and `UDADataset`. Different here: a class without such an image is dropped with a printed line
    (DAFormer stops with an assertion), and draws depend on the element alone, not on a worker's random state.
    """
    return ClassSampling(temperature, min_pixels, min_crop_ratio, redraws, statistics)


def class_balanced(*, min_pixels: int = 3000, min_crop_ratio: float = 0.5, redraws: int = 10, statistics: str = "") -> ClassSampling:
    """Every class that occurs is drawn equally often; otherwise as `rare_class`, whose temperature it sets to infinity."""
    return ClassSampling(float("inf"), min_pixels, min_crop_ratio, redraws, statistics)


class Interleave:
    """Deals positions out to parts by weight, exactly: every prefix and window holds each part's share, within a place or two.

    Position n goes to the first part when floor((n+1) w) > floor(n w), w its share, and else takes its place among the other parts.
    Whole numbers only, so nothing drifts however long the run.
    """

    def __init__(self, weights: "tuple[float, ...]"):
        exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
        if not exact or min(exact) <= 0:
            raise ConfigError(f"the weights {tuple(weights)} of a mixture's parts must be positive numbers")
        self.shares = tuple(float(weight / sum(exact)) for weight in exact)
        self._splits = [exact[k] / sum(exact[k:]) for k in range(len(exact))]

    def __call__(self, position: int) -> tuple[int, int]:
        """(part, position within the part)."""
        for part, share in enumerate(self._splits):
            before = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > before:
                return part, before
            position -= before
        raise AssertionError("the last part's share is 1")
