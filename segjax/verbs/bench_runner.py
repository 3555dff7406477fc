"""A workload compiled and ready to run: its gate, its compile times, and chunks of steps with one look at the clock each."""

import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from segjax.errors import SegjaxError
from segjax.runtime import hlo, hlo_text, products
from segjax.runtime import mesh as meshes
from segjax.runtime.compile import Report, finish
from segjax.verbs.workloads import Arrays, Workload

SETS, SET_BYTES = 8, 2**29  # sets of inputs that take turns, and how much they may hold together
CHUNK_SECONDS = 0.2


class Chunk(NamedTuple):
    """Seconds a step, by the clock and of the processor (all threads of this process)."""

    wall: float
    processor: float


def input_sets(workload: Workload, seed: int = 0) -> list[Arrays]:
    """The sets of inputs that take turns."""
    rng = np.random.default_rng(seed)
    first = workload.draw(rng)
    count = max(1, min(SETS, SET_BYTES // max(sum(value.nbytes for value in first.values()), 1)))
    return [first, *(workload.draw(rng) for _ in range(count - 1))]


class Runner:
    """report: what the compiler says. work: least operations and bytes of a step. times: seconds to trace, compile, and (`again`) with a
    warm cache. sets: the inputs on the host, `input_sets`, as the peer reads them."""

    def __init__(self, workload: Workload, mesh: jax.sharding.Mesh, sets: list[Arrays] | None = None, again: bool = True):
        self.workload, self.mesh = workload, mesh
        self.sets = input_sets(workload) if sets is None else sets
        self.inputs = [self._place(each) for each in self.sets]
        self.first = self._own(workload.start())
        self.compiled, self.report, self.work, self.times = self._compile(again)
        self.carry, self.turn = self._own(self.first), 0

    def _place(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        split, whole = meshes.batch_sharding(self.mesh), meshes.replicated(self.mesh)
        return {name: jax.device_put(x, split if x.ndim and x.shape[0] % self.mesh.size == 0 else whole) for name, x in arrays.items()}

    def _own(self, carry: Any) -> Any:
        """A copy over the mesh: a step takes the buffers of the one that it is given."""
        shardings = meshes.shard_rules(carry, self.mesh)
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(carry)

    def _compile(self, again: bool) -> tuple[Any, Report, products.Work, dict[str, float]]:
        """Compiled with a cache of its own: cold, and, `again`, as a later process would."""
        before = {name: getattr(jax.config, name) for name in _CACHE}
        with tempfile.TemporaryDirectory() as folder:
            for name, value in zip(_CACHE, (folder, 0.0), strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()  # else the folder of the first compilation stays
            try:
                compiled, cold, work = self._compile_once()
                times = {"trace_s": cold.trace_seconds, "compile_s": cold.compile_seconds}
                if again:
                    jax.clear_caches()
                    times["compile_cached_s"] = self._compile_once()[1].compile_seconds
            finally:
                for name, value in before.items():
                    jax.config.update(name, value)
                compilation_cache.reset_cache()
        return compiled, cold, work, times

    def _compile_once(self) -> tuple[Any, Report, products.Work]:
        carry = jax.tree.map(lambda leaf: leaf.sharding, self.first)
        jitted = jax.jit(self.workload.step, donate_argnums=0, out_shardings=(carry, None))
        begun = time.monotonic()
        with jax.set_mesh(self.mesh):
            traced = jitted.trace(self.first, self.inputs[0])
            compiled, report = finish(traced, begun, self.mesh)
        return compiled, report, products.work(traced.jaxpr)

    def gate(self) -> dict[str, float]:
        """Largest difference of the compiled step's outputs from the reference's on the first inputs, relative to each one's largest
        value. SegjaxError above the workload's tolerance, or where a value is not finite."""
        got = self.compiled(self._own(self.first), self.inputs[0])[1]
        want = self.workload.reference(self.first, self.inputs[0])
        return check(got, want, self.workload.tolerance, "its plain form")

    def program(self) -> hlo.Totals:
        """What one device does in a step, from the optimized program."""
        return hlo.count(hlo_text.parse(self.compiled.as_text() or ""))

    def steps(self, count: int) -> Chunk:
        """`count` steps over the sets of inputs in turn, then one wait."""
        wall, processor = time.perf_counter(), time.process_time()
        outputs = None
        for _ in range(count):
            self.carry, outputs = self.compiled(self.carry, self.inputs[self.turn % len(self.inputs)])
            self.turn += 1
        jax.block_until_ready((self.carry, outputs))
        return Chunk((time.perf_counter() - wall) / count, (time.process_time() - processor) / count)

    def warm_up(self, limit: int = 10) -> int:
        """Runs until three chunks in a row agree to 2 %, or `limit` chunks; gives the steps of a chunk that outlasts a clock's noise."""
        self.times["first_step_s"] = self.steps(1).wall
        count = min(max(math.ceil(CHUNK_SECONDS / max(self.steps(1).wall, 1e-6)), 1), 1000)
        last: list[float] = []
        while len(last) < limit and not (len(last) > 2 and max(last[-3:]) < 1.02 * min(last[-3:])):
            last.append(self.steps(count).wall)
        return count


def check(got: Any, want: Any, tolerance: float | Mapping[str, float], against: str) -> dict[str, float]:
    """Differences of the arrays that `want` has, by name. SegjaxError names the first that is above its tolerance."""
    allowed = lambda name: tolerance.get(name, tolerance["others"]) if isinstance(tolerance, Mapping) else tolerance
    found = {}
    for name, value in want.items():
        mine, theirs = np.asarray(got[name], np.float64), np.asarray(value, np.float64)
        found[name] = float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-30))
    for name, difference in found.items():
        if not difference <= allowed(name):
            told = f"{name} is {difference:.2g} from {against}, expected {allowed(name):g} or less"
            raise SegjaxError(f"the numbers differ: {told}; nothing was timed")
    return found


_CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
