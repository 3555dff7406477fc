"""The work of a traced function by the module that it belongs to: operations of products, and the bytes that these read and write."""

import dataclasses
import re

from segjax.runtime import jaxprs
from segjax.runtime.products import product_bytes

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
    for product in jaxprs.products(closed.jaxpr):
        share = found.setdefault(_path(product.scopes), Share())
        if any("transpose(" in scope for scope in product.scopes):
            share.backward += product.flops
        else:
            share.forward += product.flops
        share.bytes += product_bytes(product)
    return found


def _path(scopes: tuple[str, ...]) -> str:
    """ "transpose(jvp(Net))/head/head._stem" -> "Net/head"; what transformations put around a scope is no module, nor is a method."""
    parts = [part for scope in scopes for part in _WRAPPER.sub("", scope).split("/")]
    return "/".join(part for part in parts if part and "." not in part)
