"""Samplers as pure functions over tables: noise to latents in a fixed number of network calls, one `lax.scan`, one dispatch.

`make` reads a diffusers `scheduler_config.json`; DDIM, DDPM, PNDM (its PLMS form), Euler and DPM-Solver++ 2M take the same steps as
diffusers' classes of those names. A sampler other than the config's own takes the keys that it knows and its class's defaults for the
others, as `from_config` does there. Differences: `clip_sample` is off unless the config asks for it (latents have no range), and PNDM
never takes Runge-Kutta steps (`skip_prk_steps`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from segjax.errors import ConfigError
from segjax.generation import noise as noises
from segjax.generation import solvers
from segjax.generation.solvers import Sampler
from segjax.typing import Array


class Kind(NamedTuple):
    """make: (schedule, steps, config) -> Sampler. names: of diffusers' classes that it stands for."""

    make: Callable[[noises.Schedule, int, Mapping[str, Any]], Sampler]
    names: tuple[str, ...]


SAMPLERS = {
    "ddim": Kind(solvers.ddim, ("DDIMScheduler",)),
    "ddpm": Kind(solvers.ddpm, ("DDPMScheduler",)),
    "pndm": Kind(solvers.pndm, ("PNDMScheduler",)),
    "euler": Kind(solvers.euler, ("EulerDiscreteScheduler",)),
    "dpmpp2m": Kind(solvers.dpmpp2m, ("DPMSolverMultistepScheduler",)),
}


def name_of(config: Mapping[str, Any]) -> str:
    """The sampler that a scheduler_config.json names. ConfigError: one that is not here."""
    asked = config.get("_class_name", "PNDMScheduler").removeprefix("Flax")
    for name, kind in SAMPLERS.items():
        if asked in kind.names:
            return name
    raise ConfigError(f"scheduler_config.json: {asked} is not here: choose a sampler by name, one of {', '.join(SAMPLERS)}")


def make(config: Mapping[str, Any], steps: int, name: str = "") -> Sampler:
    """The sampler of a config, or the one of this name over the config's noise. ConfigError: unknown name, impossible steps or option."""
    name = name or name_of(config)
    if name not in SAMPLERS:
        raise ConfigError(f"sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    if config.get("skip_prk_steps") is False and name == name_of(config) == "pndm":
        raise ConfigError("scheduler_config.json: PNDM with Runge-Kutta steps is not supported: set skip_prk_steps true")
    schedule = noises.from_config(config)
    if not 1 <= steps <= len(schedule.betas):
        raise ConfigError(f"steps={steps}: expected 1 to {len(schedule.betas)}, the timesteps that the network was trained on")
    return SAMPLERS[name].make(schedule, steps, config)


def run(
    sampler: Sampler, predict: Callable[[Array, Array], Array], start: Array, noise: Callable[[Array], Array], *, trajectory: bool = False
) -> Array:
    """Latents [B,h,w,C] out of standard normal `start`.

    predict: (network input, timestep) -> output. noise: (call number i) -> standard normal of start's shape, asked by samplers that draw.
    trajectory: return the latents after every call, [calls,B,h,w,C].
    """

    def body(state, i):
        output = predict(sampler.scale(state[0], i), jnp.asarray(sampler.timesteps)[i])
        state = sampler.step(state, output.astype(jnp.float32), i, noise(i) if sampler.draws else None)
        return state, state[0] if trajectory else None

    state, path = lax.scan(body, sampler.start(start * np.float32(sampler.first_sigma)), jnp.arange(len(sampler.timesteps)))
    return state[0] if path is None else path
