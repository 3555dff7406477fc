"""Repeated blocks as one scanned block: a deep network compiles like a shallow one."""

from typing import Any, Literal, get_args

import flax.linen as nn
import jax

from segjax.errors import ConfigError
from segjax.ops.kept import NARROW, STATISTICS

Remat = Literal["none", "wide", "all"]
"""What of a block is computed again for its gradient (`rematerialised`)."""


def scanned(block: Any, length: int, *, in_axes: Any = nn.broadcast, unroll: int = 1, remat: Remat = "none", static: Any = ()) -> Any:
    """A Linen class whose call (carry, *inputs) -> (carry, output) runs `length` copies of `block` one after the other.

    Parameters, BatchNorm statistics and sown intermediates get a leading axis of that length; every copy draws its own dropout.
    in_axes: the axis along which each input is dealt out to the copies, or `nn.broadcast` (default, for all) to give it whole to each.
    unroll: copies to a turn of the loop. remat, static: compute activations again for the gradient (`rematerialised`).
    """
    return nn.scan(
        rematerialised(block, remat, static),
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=unroll,
    )


def rematerialised(block: Any, remat: Remat, static: Any = ()) -> Any:
    """The block, or the same block whose activations are computed again for the gradient.

    remat: "none" keeps them all; "all" keeps what enters the block alone; "wide" also keeps what costs much to compute again and little to
    keep, the outputs of convolutions and products that do not widen and BatchNorm's statistics. ConfigError for anything else. static:
    places of inputs that are Python values, `self` being 0.
    """
    if remat not in get_args(Remat):
        raise ConfigError(f"remat={remat!r}: expected one of {', '.join(get_args(Remat))}")
    if remat == "none":
        return block
    policy = jax.checkpoint_policies.save_only_these_names(NARROW, STATISTICS) if remat == "wide" else None
    return nn.remat(block, prevent_cse=False, static_argnums=static, policy=policy)
