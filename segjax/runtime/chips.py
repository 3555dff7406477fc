"""What TPU chips can do at best, and a model of a step's time made of that. Nothing here is measured.

Peaks: the tables "System architecture" of Google Cloud's documentation (docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e), a chip each.
"""

import dataclasses
from typing import NamedTuple

from segjax.runtime.hlo import Totals


class Chip(NamedTuple):
    """flops: bfloat16, a second. memory: bytes of HBM. bandwidth: HBM bytes a second. links: bytes a second over all links to other
    chips, both directions together."""

    flops: float
    memory: float
    bandwidth: float
    links: float


CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 400e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 1200e9),
    "v6e": Chip(918e12, 32e9, 1600e9, 800e9),
}
SOURCE = "Google Cloud documentation, TPU v5e, v5p and v6e, system architecture"


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step: of products at the chip's peak times `efficiency`, of traffic to HBM, of collectives.

    apart: nothing overlaps collectives (the upper end); overlapped: they hide behind the rest as far as it goes (the lower end).
    """

    efficiency: float
    compute: float
    memory: float
    collectives: float

    @property
    def apart(self) -> float:
        return max(self.compute, self.memory) + self.collectives

    @property
    def overlapped(self) -> float:
        return max(self.compute, self.memory, self.collectives)

    @property
    def scaling(self) -> float:
        """Share of the step that is left for work when nothing overlaps: what n chips give over n times one, at one batch a chip."""
        return max(self.compute, self.memory) / self.apart if self.apart else 1.0


def step_time(totals: Totals, chip: Chip, efficiency: float = 1.0) -> StepTime:
    """The model: flops / (efficiency x peak), bytes / bandwidth, and each collective on a ring in one direction (half of `links`).

    An all-reduce of B bytes among n moves 2 (n - 1) / n x B, an all-gather that gives B and a reduce-scatter or all-to-all of B move
    (n - 1) / n x B, a permutation or broadcast B. No latency, no contention, no waiting for data or for the slowest chip.
    """
    rate, seconds = chip.links / 2, 0.0
    for (kind, group), count in totals.moved.items():
        share = (group - 1) / group
        factor = 2 * share if kind == "all-reduce" else 1.0 if kind.startswith("collective-") else share
        seconds += factor * count / rate
    return StepTime(efficiency, totals.flops / (efficiency * chip.flops), totals.bytes / chip.bandwidth, seconds)
