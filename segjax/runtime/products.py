"""The least that a traced function must compute and move: products and convolutions alone, everything else fused into them."""

from typing import NamedTuple

import numpy as np

from segjax.runtime.compile import count_flops, equation_flops, inner_jaxprs


class Work(NamedTuple):
    """flops: `compile.count_flops`. bytes: each operand and result of every product and convolution once, at its own type, loops times
    their length; and each argument and result of the whole function once."""

    flops: float
    bytes: float

    def seconds(self, flops_a_second: float, bytes_a_second: float) -> float:
        """Roofline: the time that the slower of the two takes."""
        return max(self.flops / flops_a_second, self.bytes / bytes_a_second)


def work(closed) -> Work:
    """The work of a closed jaxpr (`jax.make_jaxpr(f)(...)`, or `jax.jit(f).trace(...).jaxpr`)."""
    ends = [*closed.jaxpr.invars, *closed.jaxpr.outvars]
    return Work(count_flops(closed.jaxpr), _product_bytes(closed.jaxpr) + sum(_bytes(end.aval) for end in ends))


def equation_work(eqn) -> Work | None:
    """The work of one product or convolution, None for any other equation."""
    if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
        return None
    return Work(equation_flops(eqn), sum(_bytes(value.aval) for value in (*eqn.invars, *eqn.outvars)))


def _product_bytes(jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if (own := equation_work(eqn)) is not None:
            total += own.bytes
        elif name == "cond":
            total += max(_product_bytes(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            total += times * sum(_product_bytes(inner) for inner in inner_jaxprs(params))
    return total


def _bytes(aval) -> float:
    try:
        return float(np.prod(aval.shape, dtype=np.float64)) * np.dtype(aval.dtype).itemsize
    except TypeError:  # a typed key
        return 0.0
