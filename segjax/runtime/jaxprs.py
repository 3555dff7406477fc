"""The products and convolutions of a traced function: those that its results need, loops times their length."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

PRODUCTS = ("dot_general", "conv_general_dilated")


class Product(NamedTuple):
    """eqn: a dot_general or conv_general_dilated. times: how often it runs. scopes: the names around it, outermost first."""

    eqn: Any
    times: int
    scopes: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Floating-point operations of all its runs."""
        return self.times * _flops(self.eqn)


def products(jaxpr, wanted: Sequence[bool] | None = None, times: int = 1, scopes: tuple[str, ...] = ()) -> Iterator[Product]:
    """Every product that is needed for the results of `jaxpr` (for those that are `wanted`), in order.

    A scan counts times its length, a conditional by its dearest branch (that is what `lax.platform_dependent` becomes), a while loop once.
    What a trace leaves behind and nothing reads (the primal of a `jax.vjp` of which only the pullback is used) does not count.
    """
    for eqn, used in _live(jaxpr, wanted):
        name, params, here = eqn.primitive.name, eqn.params, (*scopes, str(eqn.source_info.name_stack))
        if name in PRODUCTS:
            yield Product(eqn, times, here)
        elif name == "cond":
            branches = [list(products(branch.jaxpr, used, times, here)) for branch in params["branches"]]
            yield from max(branches, key=lambda branch: sum(each.flops for each in branch))
        else:
            length = params["length"] if name == "scan" else params["mesh"].size if name == "shard_map" else 1
            for inner in _inner(params):
                same = name not in ("scan", "while") and len(inner.outvars) == len(used)
                yield from products(inner, used if same else None, times * length, here)


def count_flops(jaxpr) -> float:
    """Floating-point operations of the products and convolutions in a jaxpr; a scan counts times its length, a cond its largest branch."""
    return sum(each.flops for each in products(jaxpr))


def _live(jaxpr, wanted: Sequence[bool] | None) -> list[tuple[Any, list[bool]]]:
    """The equations that the wanted results need, each with which of its own results are read."""
    ends = jaxpr.outvars if wanted is None else [end for end, keep in zip(jaxpr.outvars, wanted, strict=True) if keep]
    needed, found = {end for end in ends if _variable(end)}, []
    for eqn in reversed(jaxpr.eqns):
        used = [end in needed for end in eqn.outvars]
        if any(used) or eqn.effects:
            found.append((eqn, used))
            needed.update(value for value in eqn.invars if _variable(value))
    return found[::-1]


def _variable(value: Any) -> bool:
    return not hasattr(value, "val")  # a literal has one


def _inner(params: dict) -> Iterator[Any]:
    """The jaxprs among an equation's parameters: bodies of loops and calls."""
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _flops(eqn) -> float:
    params = eqn.params
    if eqn.primitive.name == "dot_general":
        left, axes = eqn.invars[0].aval.shape, params["dimension_numbers"][0][0]
        return 2.0 * eqn.outvars[0].aval.size * float(np.prod([left[a] for a in axes]))
    kernel = eqn.invars[1].aval
    features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    holes = float(np.prod(params["lhs_dilation"]))
    return 2.0 * eqn.outvars[0].aval.size * kernel.size / features / holes
