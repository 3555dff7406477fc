"""What single instructions of an optimized program cost: floating-point operations, and devices that a collective joins."""

import re

import numpy as np

from segjax.runtime.hlo_text import Instruction


def flops(one: Instruction, body: dict[str, Instruction]) -> float:
    """Multiply-adds of a product or convolution times 2; 0 for anything else. body: the computation that it stands in."""
    form = {"dot": _dot, "convolution": _convolution}.get(one.opcode)
    return form(one, body) if form else 0.0


def group_size(attributes: str, devices: int) -> int:
    """Devices that a collective joins, from its `replica_groups` in any of XLA's spellings; all of them where it names none."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](?:[^{}=]*(?:=\([^{}]*?\))? *\{('[^}]*)\})?", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        group = 1
        for axis, part in re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh[2] or "") or [(name, "") for name in sizes]:
            group *= int(part) if part else sizes[axis]
        return group
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(iota[2])
    if groups := re.search(r"replica_groups=\{\{([\d, ]*)\}", attributes):
        return len(groups[1].split(","))
    if "source_target_pairs=" in attributes:
        return 2
    return devices


def _shape(name: str, body: dict[str, Instruction]) -> tuple[int, ...]:
    return body[name].outputs[0].shape


def _dot(one: Instruction, body: dict[str, Instruction]) -> float:
    left = _shape(one.operands[0], body)
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
    total = 2.0 * one.outputs[0].size
    for axis in axes[1].split(",") if axes and axes[1] else ():
        total *= left[int(axis)]
    return total


def _convolution(one: Instruction, body: dict[str, Instruction]) -> float:
    """Pairs of an output and a tap that meets a pixel x input features x 2, as XLA counts: taps on padding and on holes do nothing.

    The compiler writes a batched product as a convolution over the batch with so much padding that each output meets one tap.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    image, kernel, result = _shape(one.operands[0], body), _shape(one.operands[1], body), one.outputs[0].shape
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_-]+)", _braces("window", one.attributes)))
    numbers = {key: value.split("x") for key, value in window.items()}
    if labels is None:
        return 0.0
    total = 2.0 * kernel[labels[2].index("i")]
    for name, length in zip(labels[3], result, strict=True):
        total *= length if name in "bf" else 1
    for n in range(len(numbers.get("size", ()))):
        whole = lambda key, n=n: int(numbers[key][n]) if key in numbers else 1
        low = int(numbers["pad"][n].split("_")[0]) if "pad" in numbers else 0
        outputs = np.arange(result[labels[3].index(str(n))])[:, None] * whole("stride")
        place = outputs + np.arange(whole("size")) * whole("rhs_dilate") - low
        last = (image[labels[1].index(str(n))] - 1) * whole("lhs_dilate")
        total *= int(np.count_nonzero((place >= 0) & (place <= last) & (place % whole("lhs_dilate") == 0)))
    return total


def _braces(name: str, attributes: str) -> str:
    found = re.search(rf"\b{name}=\{{([^}}]*)\}}", attributes)
    return found[1] if found else ""
