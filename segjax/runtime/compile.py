"""Ahead-of-time compilation of the training step, and what is known about it before it runs."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from segjax.errors import SegjaxError
from segjax.runtime import vmem
from segjax.runtime.jaxprs import count_flops as count_flops
from segjax.runtime.log import say
from segjax.runtime.mesh import replicated
from segjax.runtime.state import path_name
from segjax.typing import Method


@dataclasses.dataclass(frozen=True)
class Report:
    """What the compiler says about a step. Memory and bytes are of one device; None where a platform does not tell.

    flops: matrix products and convolutions of the whole step over the global batch, loops times their length (XLA's own count
    takes a loop's body once). bytes_accessed: XLA's estimate of memory traffic, loop bodies once.
    """

    flops: float
    bytes_accessed: float | None
    argument_bytes: int | None
    output_bytes: int | None
    temp_bytes: int | None
    alias_bytes: int | None
    trace_seconds: float
    compile_seconds: float
    devices: int

    @property
    def peak_bytes(self) -> int | None:
        """Arguments + temporaries + the outputs that do not reuse (donated) arguments."""
        if self.argument_bytes is None or self.temp_bytes is None or self.output_bytes is None or self.alias_bytes is None:
            return None
        return self.argument_bytes + self.temp_bytes + self.output_bytes - self.alias_bytes

    def __str__(self) -> str:
        parts = [f"{self.flops / 1e9:.3g} GFLOP"]
        if self.bytes_accessed is not None:
            parts.append(f"{_size(self.bytes_accessed)} moved")
        if (peak := self.peak_bytes) is not None and self.argument_bytes is not None and self.temp_bytes is not None:
            parts.append(f"memory a device {_size(peak)} ({_size(self.argument_bytes)} arguments, {_size(self.temp_bytes)} temporary)")
        times = f"traced in {self.trace_seconds:.1f} s, compiled in {self.compile_seconds:.1f} s"
        return f"step: {', '.join(parts)}; {times}, for {self.devices} device{'s' if self.devices > 1 else ''}"


def compile_step(
    method: Method, state_spec: Any, frozen: Any, batch_spec: Any, mesh: Mesh, options: dict[str, Any] | None = None
) -> tuple[jax.stages.Compiled, Report]:
    """`method.step` compiled for these shapes, with the state donated, and its report (printed).

    state_spec, batch_spec: ShapeDtypeStructs with shardings; frozen: arrays on the mesh or such specs. options: XLA's, for this program
    alone. The state leaves as it came, metrics are replicated. Raises SegjaxError when the step changes a shape, dtype or the structure of
    its state, and when the device has too little memory.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state_spec, frozen, batch_spec))
    jitted = jax.jit(method.step, in_shardings=shardings, out_shardings=(shardings[0], replicated(mesh)), donate_argnums=0)
    begun = time.monotonic()
    try:
        with jax.set_mesh(mesh):  # layers read it to keep a kernel that is sharded over "fsdp" whole at its use
            traced = jitted.trace(state_spec, frozen, batch_spec)
    except ValueError:  # out_shardings of another structure: say it in the state's terms
        _check_state(state_spec, jax.eval_shape(method.step, state_spec, frozen, batch_spec)[0])
        raise
    _check_state(state_spec, traced.out_info[0])
    compiled, report = finish(traced, begun, mesh, options)
    say(str(report))
    return compiled, report


def finish(traced: Any, begun: float, mesh: Mesh, options: dict[str, Any] | None = None) -> tuple[jax.stages.Compiled, Report]:
    """Lower and compile what `jax.jit(...).trace(...)` gave, and say what the compiler knows about it. begun: `time.monotonic()` before the
    trace. SegjaxError when the device has too little memory."""
    lowered = traced.lower()
    between = time.monotonic()
    with out_of_memory_told():
        compiled = lowered.compile(compiler_options={**vmem.options(mesh), **(options or {})} or None)
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    sizes = {f"{kind}_bytes": getattr(memory, f"{kind}_size_in_bytes", None) for kind in ("argument", "output", "temp", "alias")}
    return compiled, Report(
        flops=count_flops(traced.jaxpr.jaxpr),
        bytes_accessed=costs.get("bytes accessed"),
        trace_seconds=between - begun,
        compile_seconds=time.monotonic() - between,
        devices=mesh.size,
        **sizes,
    )


def _check_state(before: Any, after: Any) -> None:
    shape = lambda tree: {path_name(p): (x.shape, str(x.dtype)) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
    old, new = shape(before), shape(after)
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if changed:
        name = changed[0]
        raise SegjaxError(
            f"the method's step turns state.{name.replace('/', '.')} from {old.get(name, 'absent')} into {new.get(name, 'absent')}"
            f"{f' (and {len(changed) - 1} more)' if len(changed) > 1 else ''}: a step returns the state as it came"
        )


@contextlib.contextmanager
def out_of_memory_told(report: Report | None = None) -> Iterator[None]:
    """Turns the runtime's RESOURCE_EXHAUSTED into a SegjaxError with what the step needs and what lowers it."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if kernel := vmem.too_little(str(error)):
            raise SegjaxError(kernel) from error
        needs = f" (the step needs {_size(report.peak_bytes)} a device)" if report and report.peak_bytes else ""
        raise SegjaxError(
            f"out of device memory{needs}: {str(error).splitlines()[0][:200]}. Lower batch_size or data.crop, set "
            'model.dtype="bfloat16", work the batch off in parts with method.accumulate, or spread the parameters with mesh.fsdp'
        ) from error


def enable_cache(directory: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Keeps compiled programs on disk, so that a restart compiles in a fraction of the time. Call before the first compilation.

    directory: default the environment's SEGJAX_CACHE, else a cache that is set already (JAX_COMPILATION_CACHE_DIR), else
    ~/.cache/segjax. An empty SEGJAX_CACHE turns it off. Returns the folder, or None with a printed warning when it cannot be written.
    """
    wanted = directory if directory is not None else os.environ.get("SEGJAX_CACHE")
    if wanted is None:
        already = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]  # jax adds options at run time
        wanted = already or pathlib.Path.home() / ".cache" / "segjax"
    if not str(wanted):
        return None
    folder = pathlib.Path(wanted).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        say(f"warning: no compile cache, {folder} cannot be written ({error.strerror}); every start compiles anew")
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    least = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]  # 1 s unless told
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min(least, 0.5))
    return folder


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"
