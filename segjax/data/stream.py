"""One role's training elements, source or target: element i as a function of the seed and i, cut straight into a batch's arrays."""

import dataclasses
import functools
from typing import Any

import numpy as np

from segjax.data.crops import CropRule, random_crop
from segjax.data.features import KEY
from segjax.data.mixture import Mixture, order_of
from segjax.data.robust import Broken, LabelsRead, Policy, first_readable, read
from segjax.data.sampling import ClassSampling, Count, Interleave, Order
from segjax.errors import DataError

ROLES = ("source", "target")


@dataclasses.dataclass(frozen=True)
class Stream:
    """What the elements of one role are. rules: the crops that a batch is made of, dealt out by share (`deal`), each with its own seed.

    sampling: how records are drawn, None for shuffled epochs. labelled: the elements have labels. part_ids: they tell their mixture's part.
    """

    role: str
    dataset: Any
    rules: tuple[CropRule, ...]
    deal: Interleave
    seeds: tuple[np.random.SeedSequence, ...]
    sampling: ClassSampling | None
    policy: Policy
    labelled: bool
    part_ids: bool
    features: tuple[tuple[int, ...], str] | None = None
    """Shape and type of the features that its examples bring along (`data.features`)."""

    def orders(self, count: Count) -> tuple[tuple[int, Order], ...]:
        """(seed of the elements' generators, order of the records) for each crop rule. Class sampling reads or counts its statistics."""
        seen = (lambda dataset: dataset) if self.policy.action == "raise" else LabelsRead
        once = functools.cache(lambda dataset, path: count(seen(dataset), path))
        found = []
        for sequence in self.seeds:
            order = order_of(self.dataset, self.sampling, int(sequence.generate_state(1)[0]), once)
            found.append((int(sequence.generate_state(1, np.uint64)[0]), order))
        return tuple(found)

    def allocate(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays of a batch: ROLE_image, ROLE_label when labelled, ROLE_part (of a mixture) when asked for, ROLE_sam_features."""
        height, width = self.rules[0].crop
        arrays: dict[str, np.ndarray] = {f"{self.role}_image": np.empty((rows, height, width, 3), np.uint8)}
        if self.labelled:
            arrays[f"{self.role}_label"] = np.empty((rows, height, width), np.uint8)
        if self.features:
            shape, kind = self.features
            arrays[f"{self.role}_{KEY}"] = np.empty((rows, *shape), kind)
        if self.part_ids:
            arrays[f"{self.role}_part"] = np.empty(rows, np.uint8)
        return arrays

    def fill(self, orders: tuple[tuple[int, Order], ...], position: int, arrays: dict[str, np.ndarray], row: int) -> list[Broken]:
        """Writes element `position` into a row of a batch's arrays and returns the records that it could not read."""
        kind, own = self.deal(position)
        seed, order = orders[kind]
        found = read(self.dataset, order, seed, own, self.policy)
        out = {key: arrays[f"{self.role}_{key}"][row] for key in ("image", "label", KEY) if f"{self.role}_{key}" in arrays}
        random_crop(found.rng, found.example, self.rules[kind], found.draw.wanted, out)
        if self.part_ids:
            arrays[f"{self.role}_part"][row] = self.dataset.part_of(found.draw.index)[0]
        return [Broken(self.role, self.dataset.name(index), message) for index, message in found.broken]


def open_stream(
    role: str, dataset, rules: tuple[CropRule, ...], *, seed: int, sampling: ClassSampling | None, policy: Policy, part_ids: bool
) -> Stream:
    """A role's stream, checked: DataError on an empty set, no labels in a source, or a crop larger than the first image."""
    first = first_readable(dataset, policy)
    height, width = first["image"].shape[:2]
    for rule in rules:
        rule.check(height, width, first["name"])
    if role == "source" and "label" not in first:
        raise DataError(f"{dataset!r} has no labels, but a source must be labelled: set its labels folder, or use it as the target")
    # Source and target take different orders even when they are one data set, and so do the kinds of crops of one batch.
    seeds = [np.random.SeedSequence([seed, ROLES.index(role), *([kind] if kind else [])]) for kind in range(len(rules))]
    return Stream(
        role,
        dataset,
        rules,
        Interleave(tuple(rule.share for rule in rules)),
        tuple(seeds),
        sampling,
        policy,
        labelled="label" in first,
        part_ids=part_ids and isinstance(dataset, Mixture),
        features=(first[KEY].shape[1:], str(first[KEY].dtype)) if KEY in first else None,
    )
