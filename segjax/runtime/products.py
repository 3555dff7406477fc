"""The least that a traced function must compute and move: products and convolutions alone, everything else fused into them."""

from typing import NamedTuple

import numpy as np

from segjax.runtime import jaxprs


class Work(NamedTuple):
    """flops: `jaxprs.count_flops`. bytes: each operand and result of every product and convolution once, at its own type, loops times
    their length; and each argument and result of the whole function once."""

    flops: float
    bytes: float

    def seconds(self, flops_a_second: float, bytes_a_second: float) -> float:
        """Roofline: the time that the slower of the two takes."""
        return max(self.flops / flops_a_second, self.bytes / bytes_a_second)


def work(closed) -> Work:
    """The work of a closed jaxpr (`jax.make_jaxpr(f)(...)`, or `jax.jit(f).trace(...).jaxpr`)."""
    ends = [*closed.jaxpr.invars, *closed.jaxpr.outvars]
    found = list(jaxprs.products(closed.jaxpr))
    return Work(sum(each.flops for each in found), sum(map(product_bytes, found)) + sum(_bytes(end.aval) for end in ends))


def product_bytes(product: jaxprs.Product) -> float:
    """Operands and result of all runs of a product."""
    return product.times * sum(_bytes(value.aval) for value in (*product.eqn.invars, *product.eqn.outvars))


def _bytes(aval) -> float:
    try:
        return float(np.prod(aval.shape, dtype=np.float64)) * np.dtype(aval.dtype).itemsize
    except TypeError:  # a typed key
        return 0.0
