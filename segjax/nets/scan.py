"""Repeated blocks as one scanned block: a deep network compiles like a shallow one."""

from typing import Any

import flax.linen as nn


def scanned(block: Any, length: int, *, in_axes: Any = nn.broadcast, unroll: int = 1, remat: bool = False, static: Any = ()) -> Any:
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


def rematerialised(block: Any, remat: bool, static: Any = ()) -> Any:
    """The block, or the same block whose activations are computed again for the gradient.

    static: places of inputs that are Python values, `self` being 0.
    """
    return nn.remat(block, prevent_cse=False, static_argnums=static) if remat else block
