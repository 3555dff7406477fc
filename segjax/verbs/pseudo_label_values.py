"""The values of a pseudo-label stage: what may be left out, what is wrong with them, and what they are as objects."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import ConfigError
from segjax.verbs import build, inference, scoring, stages
from segjax.verbs.pseudo_label_network import Look
from segjax.verbs.resolve import nearest

NO_RULE, CONSENSUS = "none", "consensus"
RULES = (NO_RULE, "code", "paper", CONSENSUS)
VARIANTS = ("centred", "corner")
NEEDED = ("verb", "networks", "dataset")
DEFAULTS: dict[str, Any] = {
    "size": None,
    "style": {},
    "beta": 0.01,
    "variant": "centred",
    "rule": NO_RULE,
    "share": 0.66,
    "cap": 0.9,
    "centroids": "",
    "batch_size": 1,
    "mesh": {},
    "evaluate": True,
    "score": "",
}
"""Keys that a stage may leave out, besides those of `inference.Inference`, and what they are then."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is labelled and how. size: (height, width) that images are resized to for the networks; None keeps their own.

    look: images whose look they are given first, or None. how: windows and views. centroids: of rule "consensus". rule, share, cap:
    `ops.pseudo_labels.class_thresholds`; "none" keeps every pixel. evaluate: whether the data set's labels, where it has some, are counted;
    split, headline: of that score.
    """

    dataset: Any
    look: Look | None
    size: tuple[int, int] | None
    how: inference.Inference
    batch_size: int
    rule: str
    share: float
    cap: float
    centroids: str
    evaluate: bool
    split: str
    headline: str

    @property
    def scored(self) -> bool:
        return self.evaluate and self.dataset.labelled


def job(spec: Mapping[str, Any], dataset: Any, style: Any, learned: tuple[str, ...], where: str) -> Job:
    """The values of a stage or of flags with their data sets. learned: the classes by whose mean the labels are known. ConfigError."""
    kept = {key: spec[key] for key in ("size", "batch_size", "rule", "share", "cap", "centroids", "evaluate")}
    return Job(
        dataset=dataset,
        look=None if style is None else Look(style, spec["beta"], spec["variant"]),
        how=inference.from_spec(spec, where),
        split=spec.get("split") or "train",
        headline=scoring.headline(dataset.label_space, spec["score"], learned, where.rstrip(".")),
        **kept,
    )


def values(config, name: str, places: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A stage's plain values with what it leaves out; `networks` is a tuple. ConfigError names the key that is wrong."""
    where, spec = f"config.stages.{name}", stages.filled(build.plain(config.stages[name]), places)
    known = (*NEEDED, *DEFAULTS, *inference.KEYS)
    for key in spec:
        if key not in known:
            raise ConfigError(f"{where}.{key}: a pseudo-label stage has no such key: {nearest(key, known)}")
    if missing := [key for key in NEEDED if not spec.get(key)]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}: a pseudo-label stage has {', '.join(NEEDED)}")
    networks = spec["networks"]
    spec = {**DEFAULTS, **spec, "networks": (networks,) if isinstance(networks, str) else networks}
    check(spec, f"{where}.")
    return spec


def check(spec: Mapping[str, Any], where: str) -> None:
    """ConfigError names the key that is wrong. where: what precedes it in a message, "config.stages.NAME." or "--"."""
    inference.check_size(spec["size"], f"{where}size")
    if inference.from_spec(spec, where).upsample != "logits":
        raise ConfigError(f"{where}upsample={spec['upsample']!r}: pseudo-labels resize the networks' mean, there is no other way")
    for key, choices in {"rule": RULES, "variant": VARIANTS}.items():
        if spec[key] not in choices:
            raise ConfigError(f"{where}{key}={spec[key]!r}: {nearest(str(spec[key]), choices)}")
    if (spec["rule"] == CONSENSUS) != bool(spec["centroids"]):
        raise ConfigError(
            f"{where}rule={spec['rule']!r}, centroids={spec['centroids']!r}: consensus needs centroids, other rules read none"
        )
    for key, high in {"beta": 0.5, "share": 1.0, "cap": 1.0}.items():
        if not isinstance(spec[key], int | float) or not 0 <= spec[key] <= high:
            raise ConfigError(f"{where}{key}={spec[key]!r}: expected a number from 0 to {high:g}")
    if not isinstance(spec["batch_size"], int) or spec["batch_size"] < 1:
        raise ConfigError(f"{where}batch_size={spec['batch_size']!r}: expected a whole number, 1 or more")
