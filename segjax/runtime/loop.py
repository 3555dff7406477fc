"""The training loop: read once in a lifetime. Everything that a method is lies in its step; what is here is when, not what."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError, DataError, Preempted
from segjax.runtime import mesh as meshes
from segjax.runtime import peers
from segjax.runtime import workdir as workdirs
from segjax.runtime.checkpoint import Checkpoints
from segjax.runtime.compile import compile_step, out_of_memory_told
from segjax.runtime.log import Steps, say
from segjax.runtime.meter import Clock, Meter
from segjax.runtime.preemption import Preemption
from segjax.runtime.prefetch import Prefetch
from segjax.runtime.profile import Profile
from segjax.typing import Frozen, Method, State


def train(
    method: Method,
    *,
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]],
    steps: int,
    workdir: str | os.PathLike,
    mesh: jax.sharding.Mesh | None = None,
    seed: int = 0,
    frozen: Frozen = (),
    initial_variables: Callable[[], dict | None] = lambda: None,
    checkpoint_every: int = 1000,
    keep: int = 3,
    log_every: int = 50,
    evaluate: Callable[[State, int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    resumed: Callable[[State, int], None] | None = None,
    host_metrics: Callable[[], Mapping[str, float]] = dict,
    sharding_overrides: meshes.Overrides = (),
    stop_on_nan: bool = True,
    profile: tuple[int, int] | None = None,
) -> State:
    """Trains to `steps` finished steps and returns the state; the same call again goes on from the newest good checkpoint.

    batches: batches(start) iterates this process's numpy batches from step `start` on, the same whatever came before.
    initial_variables: gives {"params", "batch_stats"} that a new state takes (`state.with_variables`), or None; a run that goes on from a
    save does not ask. evaluate: called with the state after every `evaluate_every` steps (0: never); what it returns is logged. resumed:
    called once with a state that came from a checkpoint, for what a kill may have cut off after that save. A row of metrics is the mean
    over `log_every` steps, with images_per_s (rows of the largest input), step_s, data_wait and host_idle (shares of the window in which
    the host waited for a batch, and for the device: near 1, the device is the limit), goodput (share of the time since the call that went
    into steps) and what host_metrics() says. `stop_on_nan` looks at metrics named loss..., and at params before a save.
    profile: (first, last), steps whose trace is written to the workdir's profile/ (`runtime.profile`).
    Raises Preempted after a save on SIGTERM or SIGINT; ConfigError, DataError, WeightsError; SegjaxError on NaN, a full disk or
    too little memory. Nothing saved before is lost by any of them.
    """
    for name, value in {"steps": steps, "checkpoint_every": checkpoint_every, "log_every": log_every}.items():
        if value < 1:
            raise ConfigError(f"{name}={value}: expected 1 or more")
    mesh = meshes.make_mesh() if mesh is None else mesh
    clock = Clock()
    with workdirs.claim(workdir) as place, out_of_memory_told():
        workdirs.record(place, mesh)
        saves = Checkpoints(place / "checkpoints", keep)
        saves.sweep()
        stream, first = _first_batch(batches, 0)
        spec = meshes.batch_spec(first, mesh)
        state, start = _begin(method, seed, first, mesh, saves, initial_variables, sharding_overrides)
        if start and resumed is not None:
            resumed(state, start)
        if start >= steps:
            return state
        if start:
            stream, first = _first_batch(batches, start)
        frozen = jax.device_put(frozen, meshes.shard_rules(frozen, mesh))
        state_spec, frozen_spec = meshes.with_shardings((state, frozen), jax.tree.map(lambda leaf: leaf.sharding, (state, frozen)))
        compiled, report = compile_step(method, state_spec, frozen_spec, spec, mesh)
        peers.exchange("compiled")  # one may have taken minutes longer, and collectives are less patient
        rows = max(leaf.shape[0] for leaf in spec.values())
        meter = Meter(place, saves, clock, start, log_every, stop_on_nan, rows, host_metrics)
        feed = Prefetch(itertools.chain([first], stream), lambda batch: meshes.put_batch(batch, mesh))
        with (
            contextlib.closing(meter),
            contextlib.closing(feed),
            Preemption() as preemption,
            Steps(start, steps) as progress,
            Profile(profile, place / "profile") as trace,
        ):
            for step in range(start, steps):
                trace.before(step, state)
                with clock("data"):
                    batch = _next(feed, preemption, step, steps)
                if batch is None or (reason := preemption.requested(step)):
                    meter.save(step, state, wait=True)
                    reason = preemption.pending() if batch is None else reason
                    raise Preempted(f"{reason}: saved step {step} of {steps} in {place}; the same command goes on")
                with out_of_memory_told(report):
                    state, metrics = compiled(state, frozen, batch)
                    meter.took(step + 1, metrics, progress)
                done = step + 1
                trace.after(done, state)
                if done % checkpoint_every == 0 or done == steps:
                    meter.save(done, state, wait=done == steps)
                if evaluate is not None and evaluate_every and done % evaluate_every == 0:
                    meter.evaluate(done, state, evaluate)
        say(meter.summary(steps))
        return state


def _first_batch(batches: Callable, start: int) -> tuple[Iterator, dict[str, np.ndarray]]:
    stream = iter(batches(start))
    try:
        return stream, next(stream)
    except StopIteration:
        raise DataError(f"the data gives no batch for step {start}: the data set holds fewer images than data.batch_size") from None


def _next(feed: Prefetch, preemption: Preemption, step: int, steps: int):
    # With many processes all must stop at one step, so none gives up alone.
    give_up = preemption.pending if jax.process_count() == 1 else lambda: None
    try:
        return feed.next(give_up)
    except StopIteration:
        raise DataError(f"the data ended at step {step} of {steps}: repeat the data set or lower steps") from None


def _begin(method, seed, first, mesh, saves, initial_variables, overrides) -> tuple[State, int]:
    """The newest good checkpoint, or a new state made on the devices that will hold it."""
    begun = time.monotonic()
    key = jax.random.key(seed)
    draw = jax.jit(method.init)  # one trace, for the shapes and within the program that makes the state
    abstract = jax.eval_shape(draw, key, meshes.batch_spec(first, mesh))
    shardings = meshes.shard_rules(abstract, mesh, overrides)
    if saves.agreed_steps():
        state, start = saves.restore(meshes.with_shardings(abstract, shardings))
        say(f"resumed from step {start}")
        own = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)  # no two leaves in one buffer: donation
        return own(state), start
    # Runs once: on CPU a quarter of the compile time without optimisation, which accelerators do not need for it.
    options = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    batch = meshes.put_batch(first, mesh)
    given = initial_variables()
    given = jax.device_put(given, meshes.shard_rules(given, mesh))

    def make(key, batch, given):  # in one program, so that what `given` replaces is never drawn
        state = draw(key, batch)
        return state if given is None else jax.tree.map(jnp.copy, state.with_variables(given))

    init = jax.jit(make, out_shardings=shardings, compiler_options=options).lower(key, batch, given).compile()
    peers.exchange("compiled")
    state = init(key, batch, given)
    jax.block_until_ready(state)
    say(f"state made in {time.monotonic() - begun:.1f} s: {sum(leaf.size for leaf in jax.tree.leaves(abstract)):,} numbers")
    return state, 0
