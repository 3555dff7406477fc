"""Names for what a gradient may keep of a block while it computes the rest again (`nets.scan.rematerialised`); they change no number."""

from jax.ad_checkpoint import checkpoint_name

from segjax.typing import Array

NARROW, STATISTICS = "narrow", "statistics"


def narrow(y: Array, x: Array) -> Array:
    """y, the output of a convolution or product of x, under the name `NARROW` unless it has more channels than x."""
    return checkpoint_name(y, NARROW) if y.shape[-1] <= x.shape[-1] else y


def statistics(value: Array) -> Array:
    """A mean or variance over many pixels, under the name `STATISTICS`: a few numbers that take a pass over all of them."""
    return checkpoint_name(value, STATISTICS)
