"""Names of the two public ENets: davidtvs/PyTorch-ENet (`models/enet.py`) and the authors' Torch7 release (e-lab/ENet-training)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, CONV_TRANSPOSE, IDENTITY, Layout, Public, Rule

MAKE = "segjax.nets.enet:ENet"
KINDS = ("regular", "dilated", "asymmetric", "dilated", "regular", "dilated", "asymmetric", "dilated")
"""The eight bottlenecks that stages 2 and 3 have in common (3 begins at number 0, 2 at number 1)."""
ARRAYS = {  # what a module holds: (collection, our name, their name, transform)
    "conv": (("params", "kernel", "weight", CONV), ("params", "bias", "bias", IDENTITY)),
    "tconv": (("params", "kernel", "weight", CONV_TRANSPOSE), ("params", "bias", "bias", IDENTITY)),
    "norm": (
        ("params", "scale", "weight", IDENTITY),
        ("params", "bias", "bias", IDENTITY),
        ("batch_stats", "mean", "running_mean", IDENTITY),
        ("batch_stats", "var", "running_var", IDENTITY),
    ),
    "act": (("params", "slope", "weight", IDENTITY),),
}


def _unit(ours: str, container: str, first: int = 0, kinds: str = "conv norm act") -> Iterator[tuple[str, str, str]]:
    """A convolution, its BatchNorm and its activation, numbered from `first` in one of their containers."""
    for n, kind in enumerate(kinds.split()):
        yield kind, f"{ours}/{kind}", f"{container}{first + n}"


PYTORCH_PARTS = {
    "plain": (
        *_unit("ext_conv1", "ext_conv1."),
        *_unit("ext_conv2", "ext_conv2."),
        *_unit("ext_conv3", "ext_conv3."),
        ("act", "act", "out_activation"),
    ),
    "asymmetric": (
        *_unit("ext_conv1", "ext_conv1."),
        *_unit("ext_conv2a", "ext_conv2."),
        *_unit("ext_conv2", "ext_conv2.", 3),
        *_unit("ext_conv3", "ext_conv3."),
        ("act", "act", "out_activation"),
    ),
    "up": (
        *_unit("main_conv1", "main_conv1.", kinds="conv norm"),
        *_unit("ext_conv1", "ext_conv1.", kinds="conv norm"),
        ("tconv", "ext_tconv1", "ext_tconv1"),
        ("norm", "ext_tconv1_bnorm", "ext_tconv1_bnorm"),
        *_unit("ext_conv2", "ext_conv2.", kinds="conv norm"),
    ),
}
TORCH7_PARTS = {
    "plain": (*_unit("ext_conv1", "0.0."), *_unit("ext_conv2", "0.0.", 3), *_unit("ext_conv3", "0.0.", 6), ("act", "act", "2")),
    "asymmetric": (
        *_unit("ext_conv1", "0.0."),
        ("conv", "ext_conv2a", "0.0.3"),
        *_unit("ext_conv2", "0.0.", 4),
        *_unit("ext_conv3", "0.0.", 7),
        ("act", "act", "2"),
    ),
    "up": (
        *_unit("main_conv1", "0.1.", 1, kinds="conv norm"),
        *_unit("ext_conv1", "0.0."),
        ("tconv", "ext_tconv1", "0.0.3"),
        ("norm", "ext_tconv1_bnorm", "0.0.4"),
        ("act", "ext_tconv1_act", "0.0.5"),
        *_unit("ext_conv2", "0.0.", 6),
        ("act", "act", "2"),
    ),
}


def _rules(parts, ours: str, theirs: tuple[str, ...]) -> Iterator[Rule]:
    """Rules of one block under our path `ours`; several names in `theirs` are the layers of a scan, in order."""
    for kind, our_part, their_part in parts:
        for collection, our_name, their_name, transform in ARRAYS[kind]:
            path = re.escape("/".join(name for name in (collection, ours, our_part, our_name) if name))
            keys = tuple(".".join(name for name in (block, their_part, their_name) if name) for block in theirs)
            yield Rule(path, keys if "stage" in ours else keys[0], transform)


def _layout(name: str, parts, edge, blocks: Mapping[str, tuple[str, ...]]) -> Layout:
    rules = [*_rules(edge, "", ("",))]
    for ours, theirs in blocks.items():
        kind = "up" if ours.startswith("upsample") else "asymmetric" if ours in ("stage2_3/block2", "stage2_3/block6") else "plain"
        rules += _rules(parts[kind], ours, theirs)
    return Layout(name, tuple(rules), ignore=(r".*\.num_batches_tracked",))


_SINGLE = ("downsample1_0", "downsample2_0", "upsample4_0", "regular4_1", "regular4_2", "upsample5_0", "regular5_1")

PYTORCH = _layout(
    "enet_pytorch",
    PYTORCH_PARTS,
    (
        ("conv", "initial_conv", "initial_block.main_branch"),
        ("norm", "initial_norm", "initial_block.batch_norm"),
        ("act", "initial_act", "initial_block.out_activation"),
        ("tconv", "transposed_conv", "transposed_conv"),
    ),
    {
        **{name: (name,) for name in _SINGLE},
        "stage1/block": tuple(f"regular1_{n}" for n in range(1, 5)),
        **{f"stage2_3/block{n}": (f"{kind}2_{n + 1}", f"{kind}3_{n}") for n, kind in enumerate(KINDS)},
    },
)
"""Keys of davidtvs/PyTorch-ENet; its BatchNorm epsilon is 1e-5."""

TORCH7 = _layout(
    "enet_torch7",
    TORCH7_PARTS,
    (
        ("conv", "initial_conv", "0.0"),
        ("norm", "initial_norm", "2"),
        ("act", "initial_act", "3"),
        ("tconv", "transposed_conv", "31"),
    ),
    {
        **dict(zip(_SINGLE, (("4",), ("9",), ("26",), ("27",), ("28",), ("29",), ("30",)), strict=True)),
        "stage1/block": tuple(str(n) for n in range(5, 9)),
        **{f"stage2_3/block{n}": (str(10 + n), str(18 + n)) for n in range(8)},
    },
)
"""Places in the nested containers of the Torch7 network (`segjax.weights.torch7.read`, which folds the dropout factors away)."""


def _model(source: Mapping[str, np.ndarray], layout: Layout, last: str) -> dict[str, Any]:
    if last not in source or source[last].ndim != 4:
        raise WeightsError(f"layout {layout.name}: no final transposed convolution {last!r}: this is not that ENet")
    return {"make": MAKE, "num_classes": int(source[last].shape[1]), "layout": layout.name.removeprefix("enet_")}


ENET_PYTORCH = Public(
    "enet_pytorch",
    recognises=lambda keys: "initial_block.main_branch.weight" in keys,
    layout=lambda keys: PYTORCH,
    model=lambda source, config: _model(source, PYTORCH, "transposed_conv.weight"),
)
ENET_TORCH7 = Public(
    "enet_torch7",
    recognises=lambda keys: "4.0.0.0.weight" in keys and "31.weight" in keys,
    layout=lambda keys: TORCH7,
    model=lambda source, config: _model(source, TORCH7, "31.weight"),
    reversible=False,  # the dropout factors are folded into the weights, and no one writes Torch7 files any more
)
