"""What one device does in a compiled step: operations, bytes and collectives, loop bodies times the number of their trips.

XLA's own `cost_analysis` counts the body of a loop once, so that a network of scanned blocks seems to do a fraction of its work.
"""

import dataclasses
import re
from collections import Counter

from segjax.runtime import hlo_costs
from segjax.runtime.hlo_text import Instruction, Program, Tensor

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "opt-barrier")
_RUN = ("while", "conditional", "call", "async-start")  # what they run is counted, not the buffers that pass through them
_SAME = ("copy", "bitcast", "convert", "copy-done", "reshape")


@dataclasses.dataclass
class Totals:
    """flops: multiply-adds of products and convolutions, times 2. bytes: read from and written to the device's main memory, each operand
    of each fused operation once; slices count as what is sliced. cycles: the TPU compiler's own estimates, for ranking. executions, moved:
    (kind of collective, devices in a group) -> times that it runs, and bytes: what an all-gather gives, else what goes into it on each
    device. unknown_loops: loops whose trips could not be told and count once.
    """

    flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    executions: Counter = dataclasses.field(default_factory=Counter)
    moved: Counter = dataclasses.field(default_factory=Counter)
    unknown_loops: int = 0

    def add(self, other: "Totals", times: int = 1, *, traffic: bool = True) -> None:
        """Adds `times` the other's; traffic=False leaves its bytes and cycles out (a fusion's own are counted outside)."""
        self.flops += times * other.flops
        if traffic:
            self.bytes += times * other.bytes
            self.cycles += times * other.cycles
        for mine, theirs in ((self.executions, other.executions), (self.moved, other.moved)):
            for key, value in theirs.items():
                mine[key] += times * value
        self.unknown_loops += other.unknown_loops


def count(program: Program) -> Totals:
    """The totals of one run of the program on one device. A conditional counts its dearest branch."""
    return _Counter(program).computation(program.entry)


class _Counter:
    def __init__(self, program: Program):
        self.program, self.known = program, dict[str, Totals]()

    def computation(self, name: str) -> Totals:
        if name not in self.known:
            total = Totals()
            body = self.program.computations.get(name, {})
            for instruction in body.values():
                self.instruction(instruction, body, total)
            self.known[name] = total
        return self.known[name]

    def instruction(self, one: Instruction, body: dict[str, Instruction], total: Totals) -> None:
        called = one.called
        if one.opcode == "while":
            trips, inner = self.trips(one, body), Totals()
            inner.add(self.computation(called["body"][0]))
            inner.add(self.computation(called["condition"][0]))
            total.add(inner, 1 if trips is None else trips)
            total.unknown_loops += trips is None
        elif one.opcode == "conditional":
            branches = [self.computation(name) for names in called.values() for name in names]
            total.add(max(branches, key=lambda branch: (branch.flops, branch.bytes)))
        elif one.opcode in ("call", "async-start", "fusion", "custom-call"):
            for names in called.values():
                for name in names:
                    total.add(self.computation(name), traffic=one.opcode in ("call", "async-start"))
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self.collective(kind, one, body, total)
        total.flops += hlo_costs.flops(one, body)
        total.cycles += sum(int(found) for found in re.findall(r'"estimated_cycles":"(\d+)"', one.attributes))
        if one.opcode not in _FREE + _RUN and not one.opcode.endswith(("-done", "-update")):
            total.bytes += self.traffic(one, body)

    def collective(self, kind: str, one: Instruction, body: dict[str, Instruction], total: Totals) -> None:
        group = hlo_costs.group_size(one.attributes, self.program.devices)
        if group == 1:
            return
        given = sum(tensor.bytes for name in one.operands if name in body for tensor in body[name].outputs)
        total.executions[kind, group] += 1
        total.moved[kind, group] += given * (group if kind == "all-gather" else 1)

    def trips(self, loop: Instruction, body: dict[str, Instruction]) -> int | None:
        """How often a loop runs: as the compiler noted it, else from `counter < bound` in its condition and where the counter starts."""
        if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(noted[1])
        condition = self.program.computations.get(loop.called["condition"][0], {})
        root = next((one for one in condition.values() if one.root), None)
        if root is not None and root.opcode == "fusion":  # the comparison in a computation of its own; its constants may lie outside
            inner = self.program.computations[root.called["calls"][0]]
            compare = next((one for one in inner.values() if one.opcode == "compare"), None)
            outside = {int(one.arguments): root.operands[int(one.arguments)] for one in inner.values() if one.opcode == "parameter"}
            names = {one.name: outside[int(one.arguments)] for one in inner.values() if one.opcode == "parameter"}
            scope = {**condition, **{name: one for name, one in inner.items() if one.opcode != "parameter"}}
        else:
            compare, names, scope = root, {}, condition
        if compare is None or compare.opcode != "compare":
            return None
        counter, bound = (names.get(name, name) for name in compare.operands[:2])
        end = _constant(bound, scope)
        direction = re.search(r"direction=(\w+)", compare.attributes)
        extra = {"LT": 0, "LE": 1}.get(direction[1] if direction else "")
        if end is None or extra is None:
            return None
        return max(end + extra - self.start(counter, scope, loop, body), 0)

    def start(self, counter: str, scope: dict[str, Instruction], loop: Instruction, body: dict[str, Instruction]) -> int:
        """The counter's first value; 0, as every scan has it, where it is no constant."""
        one = scope.get(counter)
        initial = body.get(loop.operands[0])
        index = re.search(r"index=(\d+)", one.attributes) if one is not None and one.opcode == "get-tuple-element" else None
        if index is None or initial is None or initial.opcode != "tuple":
            return 0
        return _constant(initial.operands[int(index[1])], body) or 0

    def traffic(self, one: Instruction, body: dict[str, Instruction]) -> float:
        """Bytes that an instruction reads and writes in main memory."""
        inside = self.program.computations.get(one.called["calls"][0], {}) if one.opcode == "fusion" and "calls" in one.called else {}
        written = sum(_bytes(tensor) for tensor in one.outputs)
        if one.opcode in ("copy-start", "all-reduce-start", "all-gather-start", "collective-permute-start"):
            written /= 2  # their type names the source beside the result
        roots = [each for each in inside.values() if each.root]
        updates = [inside.get(name) for name in roots[0].operands] if roots and roots[0].opcode == "tuple" else roots
        for tensor, root in zip(one.outputs, updates, strict=False):
            if root is not None and root.opcode == "dynamic-update-slice":  # in place: the slice alone
                slice_bytes = sum(_bytes(part) for part in inside[root.operands[1]].outputs) if root.operands[1] in inside else 0.0
                written += min(slice_bytes, _bytes(tensor)) - _bytes(tensor)
        if one.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * written
        if one.opcode == "dynamic-update-slice":
            return 2 * sum(_bytes(tensor) for tensor in body[one.operands[1]].outputs) if one.operands[1] in body else written
        read = sum(self.operand(number, name, body, inside) for number, name in enumerate(one.operands))
        return read + written

    def operand(self, number: int, name: str, body: dict[str, Instruction], inside: dict[str, Instruction]) -> float:
        """Bytes of an operand that are read: of one that a fusion only slices or updates in place, what it slices."""
        whole = sum(_bytes(tensor) for tensor in body[name].outputs) if name in body else 0.0
        return self.sliced(number, inside, whole)

    def sliced(self, number: int, inside: dict[str, Instruction], whole: float) -> float:
        """Bytes that a fused computation reads of its argument `number`, of `whole` bytes; the fusions within it are looked into."""
        parameter = next((one.name for one in inside.values() if one.opcode == "parameter" and one.arguments == str(number)), None)
        users = [one for one in inside.values() if parameter in one.operands] if parameter else []
        total = 0.0
        for user in users:
            if user.opcode in ("dynamic-slice", "slice"):
                total += sum(tensor.bytes for tensor in user.outputs)
            elif user.opcode == "fusion" and "calls" in user.called:
                within = self.program.computations.get(user.called["calls"][0], {})
                total += sum(self.sliced(place, within, whole) for place, name in enumerate(user.operands) if name == parameter)
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter):
                return whole
        return min(whole, total) if users and whole else whole


def _bytes(tensor: Tensor) -> int:
    return 0 if tensor.fast else tensor.bytes


def _constant(name: str, scope: dict[str, Instruction]) -> int | None:
    one = scope.get(name)
    while one is not None and one.opcode in _SAME and one.operands:
        one = scope.get(one.operands[0])
    found = re.fullmatch(r"-?\d+", one.arguments) if one is not None and one.opcode == "constant" else None
    return int(found[0]) if found else None
