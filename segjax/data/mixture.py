"""Several data sets as one: exact shares of each in every batch, whatever their lengths."""

import bisect
import dataclasses
import itertools

import numpy as np

from segjax.data.dataset import Dataset, Example
from segjax.data.sampling import ClassOrder, ClassSampling, Count, Draw, Interleave, Order, Shuffled
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE


@dataclasses.dataclass(frozen=True)
class Part:
    """One data set of a mixture. weight: its share of the elements. repeat: how often an epoch of the others shows each of its records.

    sampling: how its records are drawn; None shuffles them. Give weights to all parts, or repeats (default 1), not both.
    """

    dataset: Dataset
    weight: float | None = None
    repeat: float | None = None
    sampling: ClassSampling | None = None


class Mixture(Dataset):
    """The records of several data sets of one label space, one after the other; in training, in exact shares.

    parts: `Part`s; in a config `{"make": "segjax.data.mixture:Mixture", "parts": ({"make": ..., "weight": 2}, {"make": ...,
    "weight": 1})}`.
    With weights 2 and 1, of every 3 elements 2 come from the first part. Without weights a part counts by its length times `repeat`
    (CLOUDS' generated images: repeat 2.0; there a fraction is drawn anew each epoch, here the share is exact).
    A part without labels in a labelled mixture has labels of ignore everywhere; `part_ids` of `training_batches` tells such rows apart.
    Raises ConfigError: no parts, mixed weights and repeats. DataError: label spaces that differ, an empty part.
    """

    def __init__(self, parts):
        super().__init__()
        self.parts = tuple(part if isinstance(part, Part) else Part(part) for part in parts)
        if not self.parts:
            raise ConfigError("a mixture needs parts: one data set or more")
        for number, part in enumerate(self.parts):
            _check(part, number, self.parts[0])
        self.label_space = self.parts[0].dataset.label_space
        self.labelled = any(part.dataset.labelled for part in self.parts)
        self._starts = tuple(itertools.accumulate((len(part.dataset) for part in self.parts), initial=0))
        weighted = [part.weight is not None for part in self.parts]
        if any(weighted) and (not all(weighted) or any(part.repeat is not None for part in self.parts)):
            raise ConfigError("a mixture takes a weight for every part, or repeats: give all parts a weight, or none")
        self.weighted = any(weighted)
        self._interleave = Interleave(tuple(_weight(part) for part in self.parts))

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        parts = ", ".join(f"{share:.6g} of {part.dataset!r}" for share, part in zip(self.shares, self.parts, strict=True))
        return f"Mixture({parts})"

    @property
    def shares(self) -> tuple[float, ...]:
        """Each part's share of the elements."""
        return self._interleave.shares

    def part_of(self, index: int) -> tuple[int, int]:
        """(part, index within it) of a record."""
        part = bisect.bisect_right(self._starts, index) - 1
        return part, index - self._starts[part]

    def order(self, seed: int, count: Count) -> Order:
        """The training order: shares by `Interleave`, each part in an order of its own."""
        seeds = np.random.SeedSequence(seed).generate_state(len(self.parts)).tolist()
        orders = [order_of(part.dataset, part.sampling, own, count) for part, own in zip(self.parts, seeds, strict=True)]
        return _MixtureOrder(self._interleave, tuple(orders), self._starts)

    def unlabelled(self) -> "Mixture":
        return Mixture([dataclasses.replace(part, dataset=part.dataset.unlabelled()) for part in self.parts])

    def _load(self, index: int) -> Example:
        part, own = self.part_of(index)
        example = {**self.parts[part].dataset[own], "name": self._name(index)}
        if self.labelled and "label" not in example:
            example["label"] = np.full(example["image"].shape[:2], IGNORE, np.uint8)
        return example

    def _name(self, index: int) -> str:
        part, own = self.part_of(index)
        return f"{part}:{self.parts[part].dataset.name(own)}"  # two parts may name files alike

    def _image_size(self, index: int) -> tuple[int, int]:
        part, own = self.part_of(index)
        return self.parts[part].dataset.image_size(own)

    def _image(self, index: int) -> np.ndarray:
        part, own = self.part_of(index)
        return self.parts[part].dataset.image(own)

    def _label(self, index: int) -> np.ndarray:
        part, own = self.part_of(index)
        dataset = self.parts[part].dataset
        return dataset.label(own) if dataset.labelled else self._load(index)["label"]


def order_of(dataset: Dataset, sampling: ClassSampling | None, seed: int, count: Count) -> Order:
    """The training order of a data set: class sampling where asked, a mixture's shares, else shuffled epochs.

    ConfigError: class sampling without labels, or over a whole mixture whose parts have weights, which it would ignore.
    """
    if sampling is None:
        return dataset.order(seed, count) if isinstance(dataset, Mixture) else Shuffled(len(dataset), seed)
    if isinstance(dataset, Mixture) and dataset.weighted:
        raise ConfigError("data.sampling draws from all parts of a mixture alike, so their weights would not hold: move it into the parts")
    if not dataset.labelled:
        raise ConfigError(f"class sampling needs labels, but {dataset!r} has none: remove its sampling")
    return ClassOrder(count(dataset, sampling.statistics), sampling)


@dataclasses.dataclass(frozen=True)
class _MixtureOrder:
    interleave: Interleave
    orders: tuple[Order, ...]
    starts: tuple[int, ...]

    def __call__(self, position: int, rng: np.random.Generator) -> Draw:
        part, own = self.interleave(position)
        draw = self.orders[part](own, rng)
        return draw._replace(index=draw.index + self.starts[part])

    def another(self, draw: Draw, rng: np.random.Generator) -> Draw:
        part = bisect.bisect_right(self.starts, draw.index) - 1
        other = self.orders[part].another(draw._replace(index=draw.index - self.starts[part]), rng)
        return other._replace(index=other.index + self.starts[part])


def _weight(part: Part) -> float:
    return part.weight if part.weight is not None else (1.0 if part.repeat is None else part.repeat) * len(part.dataset)


def _check(part: Part, number: int, first: Part) -> None:
    space, expected = part.dataset.label_space, first.dataset.label_space
    if space != expected:
        raise DataError(
            f"parts[{number}] of a mixture, {part.dataset!r}, has the label space {space.name}, but parts[0] has {expected.name}: "
            f"set label_space={expected.name!r} in every part"
        )
    if len(part.dataset) == 0:
        raise DataError(f"parts[{number}] of a mixture, {part.dataset!r}, is empty: check its folder, split and filters")
