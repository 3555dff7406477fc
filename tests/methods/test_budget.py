"""What a compiled step may cost on 4 x 2 devices (budget.json): FLOPs, temporary bytes of a device, collectives.

A change that costs more on purpose writes the file anew: `python tests/methods/test_budget.py`.
"""

import collections
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from test_contract import METHODS

from segjax.runtime import mesh as meshes
from segjax.runtime.compile import compile_step

BUDGET = pathlib.Path(__file__).with_name("budget.json")
NAMES = ("source_only", "fda", "fda_contrastive", "fda_contrastive_everything")
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def cost(name: str) -> dict[str, float]:
    method, mesh = METHODS[name](), meshes.make_mesh(4, 2)
    batch = {f"{role}_image": np.zeros((8, 24, 36, 3), np.uint8) for role in ("source", "target")}
    batch |= {f"{role}_label": np.zeros((8, 24, 36), np.uint8) for role in ("source", "target")}
    abstract = jax.eval_shape(method.init, jax.random.key(0), batch)
    spec = meshes.with_shardings(abstract, meshes.shard_rules(abstract, mesh, min_size=64))
    compiled, report = compile_step(method, spec, (), meshes.batch_spec(batch, mesh), mesh)
    found = collections.Counter(COLLECTIVE.findall(compiled.as_text()))
    return {"flops": report.flops, "temp_bytes": report.temp_bytes, **{kind: found[kind] for kind in sorted(found)}}


@pytest.mark.parametrize("name", NAMES)
def test_a_step_costs_no_more_than_its_budget(name):
    budget, found = json.loads(BUDGET.read_text())[name], cost(name)
    assert found["flops"] == pytest.approx(budget["flops"], rel=0.02)
    assert found["temp_bytes"] <= 1.25 * budget["temp_bytes"]  # compiler versions differ
    for kind in set(found) - {"flops", "temp_bytes"}:
        assert found[kind] <= budget.get(kind, 0) * 1.25 + 2, (kind, found)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_default_matmul_precision", "highest")
    BUDGET.write_text(json.dumps({name: cost(name) for name in NAMES}, indent=1) + "\n")
