"""The work of a traced function by the module that it belongs to: operations of products, and the bytes that these read and write."""

import dataclasses
import re

from segjax.runtime.compile import inner_jaxprs
from segjax.runtime.products import equation_work

_WRAPPER = re.compile(r"[\w.<>-]+\(|\)")


@dataclasses.dataclass
class Share:
    """forward, backward: floating-point operations in either direction. bytes: of operands and results, both directions."""

    forward: float = 0.0
    backward: float = 0.0
    bytes: float = 0.0


def by_module(closed) -> dict[str, Share]:
    """Path of a module ("DeepLabV2/backbone/layer1", "" for what lies in none) -> its share, in the order of the trace.

    closed: a closed jaxpr. Scopes are those that Flax (and `jax.named_scope`) leave; loops count times their length.
    """
    found: dict[str, Share] = {}
    _walk(closed.jaxpr, (), 1, found)
    return found


def _walk(jaxpr, outer: tuple[str, ...], times: float, found: dict[str, Share]) -> None:
    for eqn in jaxpr.eqns:
        scopes = (*outer, str(eqn.source_info.name_stack))
        work = equation_work(eqn)
        if work is not None:
            share = found.setdefault(_path(scopes), Share())
            if any("transpose(" in scope for scope in scopes):
                share.backward += times * work.flops
            else:
                share.forward += times * work.flops
            share.bytes += times * work.bytes
        elif eqn.primitive.name == "cond":
            branches = [branch.jaxpr for branch in eqn.params["branches"]]
            _walk(max(branches, key=lambda branch: sum(s.forward + s.backward for s in _of(branch).values())), scopes, times, found)
        else:
            length = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in inner_jaxprs(eqn.params):
                _walk(inner, scopes, times * length, found)


def _of(jaxpr) -> dict[str, Share]:
    found: dict[str, Share] = {}
    _walk(jaxpr, (), 1, found)
    return found


def _path(scopes: tuple[str, ...]) -> str:
    """ "transpose(jvp(Net))/head" within "" -> "Net/head"; what transformations put around a scope is no module."""
    parts = [part for scope in scopes for part in _WRAPPER.sub("", scope).split("/")]
    return "/".join(part for part in parts if part)
