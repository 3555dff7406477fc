"""XLA's optimized program as text, read into computations and instructions: what `segjax.runtime.hlo` counts over.

`compiled.as_text()` is the only public way to see which collectives the compiler chose. Unknown attributes are skipped.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_TENSOR = re.compile(r"(\w+)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%([\w.\-~]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-~]+) = ")
_NAME = re.compile(r"%([\w.\-~]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|called_computations|true_computation|false_computation)=")


class Tensor(NamedTuple):
    """One array of an instruction's type. fast: it lies in the chip's own memory (VMEM, SMEM: S(1) and up), not in HBM."""

    dtype: str
    shape: tuple[int, ...]
    fast: bool

    @property
    def size(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        return -(-self.size * _bits(self.dtype) // 8)


class Instruction(NamedTuple):
    """`%name = outputs opcode(operands), attributes`. called: attribute -> names of the computations that it runs."""

    name: str
    root: bool
    outputs: tuple[Tensor, ...]
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        found = {}
        for match in _CALLED.finditer(self.attributes):
            rest = self.attributes[match.end() :]
            rest = rest[: rest.index("}") + 1] if rest.startswith("{") else rest.split(",")[0]
            found[match[1]] = tuple(_NAME.findall(rest))
        return found


class Program(NamedTuple):
    """computations: name -> {instruction's name: Instruction}, in the order of the text. devices: partitions of the program."""

    entry: str
    computations: dict[str, dict[str, Instruction]]
    devices: int


def parse(text: str) -> Program:
    """The computations of an HLO module. ValueError: text without an entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif match := _INSTRUCTION.match(line):
            instruction = _instruction(match[2], bool(match[1]), line[match.end() :])
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: expected the text of an optimized HLO module")
    parts = [re.search(rf"\b{key}=(\d+)", text[: text.index("\n")]) for key in ("num_partitions", "replica_count")]
    devices = 1
    for part in parts:
        devices *= int(part[1]) if part else 1
    return Program(entry, computations, devices)


def _instruction(name: str, root: bool, text: str) -> Instruction:
    end = _balanced(text, 0) if text.startswith("(") else _space(text)
    outputs = tuple(_tensors(text[:end]))
    opcode, _, _ = text[end + 1 :].partition("(")
    begin = end + 1 + len(opcode)
    close = _balanced(text, begin)
    arguments = text[begin + 1 : close - 1]
    return Instruction(name, root, outputs, opcode.strip(), tuple(_NAME.findall(arguments)), arguments, text[close:])


def _balanced(text: str, begin: int) -> int:
    """One past the bracket that closes the one at `begin`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, begin):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"brackets do not close in {text[begin : begin + 80]!r}")


def _space(text: str) -> int:
    """The first space outside braces: the end of a type such as `f32[8,128]{1,0:T(8,128)}`."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == " " and depth == 0:
            return position
    raise ValueError(f"no opcode in {text[:80]!r}")


def _tensors(text: str) -> Iterator[Tensor]:
    for dtype, shape, layout in _TENSOR.findall(text):
        lengths = tuple(int(part.strip(" <=")) for part in shape.split(",") if part.strip())
        yield Tensor(dtype, lengths, bool(re.search(r"S\([1-9]", layout)))


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match[1]) if match else 32
