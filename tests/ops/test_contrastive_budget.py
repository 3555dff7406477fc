"""What the contrastive loss may cost, value and gradient (contrastive_budget.json): FLOPs, temporary bytes of a device, collectives.

A change that costs more on purpose writes the file anew: `python tests/ops/test_contrastive_budget.py`.
"""

import collections
import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from segjax.ops.contrastive import FORMS, supervised_contrastive
from segjax.runtime.compile import count_flops
from segjax.runtime.mesh import batch_sharding, make_mesh

BUDGET = pathlib.Path(__file__).with_name("contrastive_budget.json")
DIMS = 32
CASES = {
    f"{form}, {n} x {n}, data {data} x fsdp {fsdp}": (form, n, data, fsdp)
    for form in FORMS
    for n, data, fsdp in ((2048, 1, 1), (4096, 1, 1), (4096, 8, 1), (4096, 4, 2))
}
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SIZES = {"pred": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4}


def compiled(form: str, n: int, data: int, fsdp: int):
    mesh = make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    rows = batch_sharding(mesh)
    kinds = ((jnp.float32, (n, DIMS)),) * 2 + ((jnp.uint8, (n,)),) * 2

    def loss(*inputs):
        total, count = supervised_contrastive(*inputs, num_classes=19, form=form)
        return total / count

    with jax.set_mesh(mesh):
        shapes = [jax.ShapeDtypeStruct(shape, kind, sharding=rows) for kind, shape in kinds]
        traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*shapes)
        return traced.lower().compile(), count_flops(traced.jaxpr.jaxpr)


def in_loops(text: str) -> str:
    """The text of the computations that a while loop's body reaches."""
    bodies = {found[1]: found[0] for found in re.finditer(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$.*?^\}$", text, re.M | re.S)}
    reached, todo = set(), re.findall(r"body=%?([\w.\-]+)", text)
    while todo:
        name = todo.pop()
        if name in bodies and name not in reached:
            reached.add(name)
            todo += re.findall(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.\-]+)", bodies[name])
    return "\n".join(bodies[name] for name in reached)


def size(shape: str) -> int:
    """Bytes of "(f32[4,8], pred[3])"."""
    return sum(SIZES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape))


def moved(text: str) -> dict[str, int]:
    """Bytes that each kind of collective gives."""
    total = collections.Counter()
    for shapes, kind in COLLECTIVE.findall(text):
        total[kind] += size(shapes)
    return dict(sorted(total.items()))


@functools.cache
def cost(case: str) -> dict:
    program, flops = compiled(*CASES[case])
    text = program.as_text()
    return {
        "flops": flops,
        "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        "collective_bytes": moved(text),
        "collective_bytes_in_loops": moved(in_loops(text)),
    }


@pytest.mark.parametrize("case", CASES)
def test_the_loss_costs_no_more_than_its_budget(case):
    budget, found = json.loads(BUDGET.read_text())[case], cost(case)
    assert found["flops"] == pytest.approx(budget["flops"], rel=0.02)
    assert found["temp_bytes"] <= 1.25 * budget["temp_bytes"]  # compiler versions differ
    assert found["collective_bytes"].keys() <= budget["collective_bytes"].keys()
    for kind, count in found["collective_bytes"].items():
        assert count <= 1.1 * budget["collective_bytes"][kind], kind
    assert found["collective_bytes_in_loops"] == {}


@pytest.mark.parametrize("form", FORMS)
def test_keys_are_gathered_once_and_their_gradient_meets_once(form):
    """Of 4096 keys of 32 numbers: more than one gather of them, or of one sum of their gradient, would be twice the bytes."""
    keys = 4096 * DIMS * 4
    for mesh in ("data 8 x fsdp 1", "data 4 x fsdp 2"):
        bytes_of = cost(f"{form}, 4096 x 4096, {mesh}")["collective_bytes"]
        assert bytes_of.keys() <= {"all-gather", "all-reduce", "reduce-scatter"}
        assert keys <= bytes_of["all-gather"] < 1.1 * keys
        assert bytes_of.get("all-reduce", 0) + bytes_of.get("reduce-scatter", 0) < 1.1 * keys


@pytest.mark.parametrize("form", FORMS)
def test_memory_grows_with_the_pixels_and_not_with_their_square(form):
    small, large = (cost(f"{form}, {n} x {n}, data 1 x fsdp 1")["temp_bytes"] for n in (2048, 4096))
    assert large < 2.1 * small
    assert large < 4 * 4096 * 4096 / 4  # a quarter of one array of all similarities


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    BUDGET.write_text(json.dumps({case: cost(case) for case in CASES}, indent=1) + "\n")
