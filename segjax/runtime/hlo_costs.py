"""What single instructions of an optimized program cost: floating-point operations, and devices that a collective joins."""

import re

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
    """Outputs x taps x input features x 2; taps that fall on the holes of a dilated input do not count, those on the padding do."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
    kernel = _shape(one.operands[1], body)
    features = kernel[labels[1].index("o")] if labels else 1
    total = 2.0 * one.outputs[0].size
    for length in kernel:
        total *= length
    holes = re.search(r"lhs_dilate=([\dx]+)", one.attributes)
    for factor in holes[1].split("x") if holes else ():
        total /= int(factor)
    return total / features
