"""What happens when a record cannot be read: stop, or go on with another one, the same one in every run, and keep the books."""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np

from segjax.data.dataset import Dataset
from segjax.data.sampling import Draw, Order
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE

POLICIES = ("raise", "skip", "replace")
_IN_A_ROW = 20
"""Broken records that one element meets before it gives up: a share under the cap makes this as good as impossible."""


class Broken(NamedTuple):
    """A record that could not be read, and why."""

    role: str
    name: str
    message: str


@dataclasses.dataclass(frozen=True)
class Policy:
    """What an element does whose record is broken (its files missing, damaged, of two sizes, or with ids out of range).

    "raise" stops with the file's error. "skip" moves on as a stream would: to the record of the next position, the one after, and so on.
    "replace" draws again at random, of the same kind: the same part of a mixture, the same wanted class.
    Both are functions of (seed, position) and of which files are broken, so no other element shifts: element i stays what it is for
    any number of workers or hosts and after a restart, without a list kept anywhere. The price of "skip" is that the record which stands in
    is also read at its own turn. max_share: of a data set's records that may be broken; one more is a DataError.
    """

    action: str = "raise"
    max_share: float = 0.01

    def __post_init__(self):
        if self.action not in POLICIES:
            raise ConfigError(f"data.broken={self.action!r}: expected one of {', '.join(POLICIES)}")
        if not 0 <= self.max_share <= 1:
            raise ConfigError(f"data.broken_share={self.max_share}: expected a share of the records from 0 to 1")


def generator(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one training element, whoever reads it."""
    return np.random.Generator(np.random.Philox(key=(seed << 64) | position))


class Element(NamedTuple):
    """What an element reads: the example, its draw, the generator to go on with, and the records that it met and could not read."""

    example: dict
    draw: Draw
    rng: np.random.Generator
    broken: tuple[tuple[int, str], ...]


def read(dataset, order: Order, seed: int, position: int, policy: Policy) -> Element:
    """The example of one position, or the one that stands in for it. DataError: broken and the policy says so, or broken too often."""
    rng = generator(seed, position)
    draw = order(position, rng)
    broken = []
    for turn in range(1, _IN_A_ROW + 1):
        try:
            return Element(dataset[draw.index], draw, rng, tuple(broken))
        except DataError as error:
            if policy.action == "raise":
                raise
            broken.append((draw.index, str(error)))
        draw = order(position + turn, generator(seed, position + turn)) if policy.action == "skip" else order.another(draw, rng)
    raise DataError(f"{_IN_A_ROW} records in a row are broken in {dataset!r}, last: {broken[-1][1]}; run `segjax data check`")


class LabelsRead(Dataset):
    """A data set for class statistics where the run goes on past broken records: a label that cannot be read holds no class."""

    def __init__(self, dataset):
        super().__init__()
        self._dataset, self.label_space, self.labelled = dataset, dataset.label_space, dataset.labelled
        self.pairs = getattr(dataset, "pairs", ())  # the files whose age tells whether kept statistics still hold

    def __len__(self) -> int:
        return len(self._dataset)

    def __repr__(self) -> str:
        return repr(self._dataset)

    def _name(self, index: int) -> str:
        return self._dataset.name(index)

    def _label(self, index: int) -> np.ndarray:
        try:
            return self._dataset.label(index)
        except DataError:
            return np.full((1, 1), IGNORE, np.uint8)


def first_readable(dataset, policy: Policy) -> dict:
    """The first example that can be read: what is checked before a run starts. DataError: empty set, nothing readable."""
    if len(dataset) == 0:
        raise DataError(f"{dataset!r} is empty, expected at least one example: check its folder, split and filters")
    last = 0 if policy.action == "raise" else min(len(dataset), _IN_A_ROW) - 1
    for index in range(last):
        with contextlib.suppress(DataError):
            return dataset[index]
    return dataset[last]


class Ledger:
    """The books of one process: every broken record once, in order of appearance, in memory and in a JSON-lines file.

    What an earlier run of the same folder wrote counts too, so a resumed run goes on counting where that one stopped. Several processes
    may share the file: each reads it again before it adds a line. Delete it after the files have been repaired.
    """

    def __init__(self, path: "str | os.PathLike | None" = None):
        self.path = pathlib.Path(path) if path is not None else None
        self._known: dict[tuple[str, str], None] = {}
        self._read()

    @property
    def count(self) -> int:
        """Broken records met so far."""
        return len(self._known)

    def metrics(self) -> dict[str, float]:
        """What the metrics log says of them: nothing while every record could be read."""
        return {"data/broken": float(self.count)} if self.count else {}

    def note(self, found: Broken, length: int, policy: Policy) -> None:
        """Books a record of a data set of `length`. DataError once the share of broken ones exceeds the policy's cap."""
        key = (found.role, found.name)
        if key not in self._known:
            self._read()
        if key not in self._known:
            self._known[key] = None
            self._write(found)
            print(f"broken {found.role} record {self.count} ({policy.action}): {found.message}", flush=True)
        known = sum(role == found.role for role, _ in self._known)
        if known > policy.max_share * length:
            raise DataError(
                f"{known} of the {length} {found.role} records are broken, more than data.broken_share={policy.max_share:g} allows, "
                f"last {found.name}: {found.message}; repair or exclude them (`segjax data check` lists all), or raise data.broken_share"
            )

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                self._known[row["role"], row["name"]] = None
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut off: the record is booked again when it is met

    def _write(self, found: Broken) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with open(self.path, "a") as file:
                file.write(("\n" if torn else "") + json.dumps(found._asdict()) + "\n")
        except OSError as error:
            raise DataError(f"{self.path} cannot be written: {error.strerror}. Free space or choose another --workdir") from error
