"""The steps of each sampler, from tables that numpy computes once in float64.

Sources: Song et al. 2020 (DDIM, arXiv 2010.02502), Ho et al. 2020 (DDPM, 2006.11239), Liu et al. 2022 (PNDM, 2202.09778), Karras et
al. 2022 (Euler, 2206.00364), Lu et al. 2022 (DPM-Solver++, 2211.01095), as diffusers schedulers/scheduling_*.py take them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError
from segjax.generation.noise import Schedule, to_x0_and_noise
from segjax.typing import Array

State = tuple[Array, ...]
"""The latents, and whatever a sampler remembers."""


class Sampler(NamedTuple):
    """A sampler as pure functions over its tables.

    timesteps: float32 [calls], what the network is told at call i. first_sigma: standard deviation of the first latents.
    start: latents -> state. scale: (latents, i) -> the network's input. step: (state, network output, i, noise or None) -> state.
    draws: each step needs standard normal noise.
    """

    timesteps: np.ndarray
    first_sigma: float
    start: Callable[[Array], State]
    scale: Callable[[Array, Any], Array]
    step: Callable[[State, Array, Any, Array | None], State]
    draws: bool = False


def _unscaled(x: Array, i: Any) -> Array:
    del i
    return x


def _table(values: Any) -> Array:
    return jnp.asarray(np.asarray(values), jnp.float32)


def spaced(timesteps: int, steps: int, config: Mapping[str, Any], default: str = "leading") -> np.ndarray:
    """`steps` of the training timesteps, the noisiest first, float64. ConfigError: beyond the last one, an unknown spacing."""
    spacing = config.get("timestep_spacing", default)
    if spacing == "linspace":
        return np.linspace(0, timesteps - 1, steps)[::-1]
    if spacing == "trailing":
        return np.round(np.arange(timesteps, 0, -timesteps / steps)) - 1
    if spacing != "leading":
        raise ConfigError(f"scheduler_config.json: timestep_spacing={spacing!r}: expected leading, linspace or trailing")
    chosen = np.arange(steps)[::-1] * float(timesteps // steps) + config.get("steps_offset", 0)
    if chosen[0] >= timesteps:
        raise ConfigError(f"steps={steps}: the first would be timestep {chosen[0]:g} of {timesteps}: take fewer steps")
    return chosen


def _previous(schedule: Schedule, before: np.ndarray, *, to_one: bool) -> tuple[np.ndarray, np.ndarray]:
    """(signal, noise) at the timesteps `before`; below 0, the clean image's or, `to_one` False, timestep 0's."""
    end = 1.0 if to_one else schedule.alphas_cumprod[0]
    share = np.where(before >= 0, schedule.alphas_cumprod[np.maximum(before, 0)], end)
    return np.sqrt(share), np.sqrt(1 - share)


def _clip(x0: Array, config: Mapping[str, Any]) -> Array:
    reach = config.get("clip_sample_range", 1.0)
    return jnp.clip(x0, -reach, reach) if config.get("clip_sample") else x0


def ddim(schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Sampler:
    """x' = signal' x_0 + noise' e: deterministic (eta = 0)."""
    count = len(schedule.betas)
    chosen = np.round(spaced(count, steps, config)).astype(int)
    ahead = _previous(schedule, chosen - count // steps, to_one=config.get("set_alpha_to_one", True))
    signal, sigma, next_signal, next_sigma = map(_table, (schedule.signal[chosen], schedule.noise[chosen], *ahead))

    def step(state, output, i, noise):
        x0, e = to_x0_and_noise(schedule.prediction, state[0], output, signal[i], sigma[i])
        return (next_signal[i] * _clip(x0, config) + next_sigma[i] * e,)

    return Sampler(chosen.astype(np.float32), 1.0, lambda x: (x,), _unscaled, step)


def ddpm(schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Sampler:
    """The posterior mean of x' given x_0, plus noise of the posterior's variance ("fixed_small"), or of beta ("fixed_large")."""
    variance_type = config.get("variance_type") or "fixed_small"
    if variance_type not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise ConfigError(f"scheduler_config.json: variance_type={variance_type!r}: expected fixed_small, fixed_small_log or fixed_large")
    chosen = np.round(spaced(len(schedule.betas), steps, config)).astype(int)
    share = schedule.alphas_cumprod[chosen]
    ahead = _previous(schedule, np.append(chosen[1:], -1), to_one=True)[0] ** 2
    beta = 1 - share / ahead
    variance = beta if variance_type == "fixed_large" else np.maximum((1 - ahead) / (1 - share) * beta, 1e-20)
    of_x0, of_x = np.sqrt(ahead) * beta / (1 - share), np.sqrt(share / ahead) * (1 - ahead) / (1 - share)
    deviation = np.where(chosen > 0, np.sqrt(variance), 0.0)
    of_x0, of_x, deviation = map(_table, (of_x0, of_x, deviation))
    signal, sigma = _table(schedule.signal[chosen]), _table(schedule.noise[chosen])

    def step(state, output, i, noise):
        x0, _ = to_x0_and_noise(schedule.prediction, state[0], output, signal[i], sigma[i])
        return (of_x0[i] * _clip(x0, config) + of_x[i] * state[0] + deviation[i] * noise,)

    return Sampler(chosen.astype(np.float32), 1.0, lambda x: (x,), _unscaled, step, draws=True)


def pndm(schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Sampler:
    """PLMS: DDIM's step with the output extrapolated from the last four (Adams-Bashforth).

    The second timestep is visited twice: the first step is taken again with the mean of both ends' outputs. So there is one call more
    than steps (one step: one call).
    """
    count = len(schedule.betas)
    chosen = np.round(spaced(count, steps, config)).astype(int)
    told = np.concatenate([chosen[:1], chosen[1:2], chosen[1:]])
    base = np.concatenate([chosen[:1], chosen[:1], chosen[1:]])[: len(told)]  # where each step starts from
    ahead = _previous(schedule, base - count // steps, to_one=config.get("set_alpha_to_one", False))
    signal, sigma, next_signal, next_sigma = map(_table, (schedule.signal[base], schedule.noise[base], *ahead))
    orders = [(1,), (1 / 2, 1 / 2), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)]
    weights = _table([np.pad(orders[min(i, 4)], (0, 4 - len(orders[min(i, 4)]))) for i in range(len(told))])

    def step(state, output, i, noise):
        sample, first, history = state
        outputs = jnp.concatenate([output[None], history])
        mixed = jnp.tensordot(weights[i], outputs, 1, precision="highest")
        again = i == 1  # the repeated timestep: from the start once more, and its output is not remembered
        x0, e = to_x0_and_noise(schedule.prediction, jnp.where(again, first, sample), mixed, signal[i], sigma[i])
        return next_signal[i] * x0 + next_sigma[i] * e, first, jnp.where(again, history, outputs[:3])

    return Sampler(told.astype(np.float32), 1.0, lambda x: (x, x, jnp.zeros((3, *x.shape), jnp.float32)), _unscaled, step)


def _sigmas(schedule: Schedule, timesteps: np.ndarray, last: float) -> np.ndarray:
    """noise / signal at (fractional) timesteps, and `last`."""
    known = schedule.noise / schedule.signal
    return np.append(np.interp(timesteps, np.arange(len(known)), known), last)


def _last_sigma(schedule: Schedule, config: Mapping[str, Any]) -> float:
    kind = config.get("final_sigmas_type", "zero")
    if kind not in ("zero", "sigma_min"):
        raise ConfigError(f"scheduler_config.json: final_sigmas_type={kind!r}: expected zero or sigma_min")
    return 0.0 if kind == "zero" else float(schedule.noise[0] / schedule.signal[0])


def euler(schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Sampler:
    """Euler's method in x / signal = x_0 + sigma e; latents are kept so scaled, the network gets them unscaled."""
    if config.get("interpolation_type", "linear") != "linear" or config.get("timestep_type", "discrete") != "discrete":
        raise ConfigError("scheduler_config.json: Euler has interpolation_type linear and timestep_type discrete alone here")
    chosen = spaced(len(schedule.betas), steps, config, "linspace")
    values = _sigmas(schedule, chosen, _last_sigma(schedule, config))
    spread = config.get("timestep_spacing", "linspace") in ("linspace", "trailing")
    first = values.max() if spread else np.sqrt(values.max() ** 2 + 1)
    sigmas, signal = _table(values), _table(1 / np.sqrt(values**2 + 1))

    def step(state, output, i, noise):
        x = state[0]
        sigma = sigmas[i]
        _, e = to_x0_and_noise(schedule.prediction, x * signal[i], output, signal[i], sigma * signal[i])
        return (x + e * (sigmas[i + 1] - sigma),)

    return Sampler(chosen.astype(np.float32), float(first), lambda x: (x,), lambda x, i: x * signal[i], step)


def dpmpp2m(schedule: Schedule, steps: int, config: Mapping[str, Any]) -> Sampler:
    """DPM-Solver++ of second order, multistep, midpoint; first order at the first step and, as diffusers has it, at the last."""
    fixed = {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"}
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise ConfigError(f"scheduler_config.json: {key}={config[key]!r}: DPM-Solver++ 2M has {value!r}")
    count, spacing = len(schedule.betas), config.get("timestep_spacing", "linspace")
    chosen = np.round(spaced(count, steps, config) if spacing == "trailing" else spaced(count, steps + 1, config, "linspace")[:-1])
    sigmas = _sigmas(schedule, chosen, _last_sigma(schedule, config))
    if (np.diff(sigmas) >= 0).any():
        raise ConfigError(f"steps={steps}: DPM-Solver++ would visit a timestep twice: take fewer steps")
    short = config.get("lower_order_final", True) and steps < 15
    last_is_first_order = config.get("euler_at_final", False) or short or sigmas[-1] == 0
    coefficients = [_second_order(sigmas, i, first=i == 0 or (i == steps - 1 and last_is_first_order)) for i in range(len(chosen))]
    of_x, of_now, of_before = map(_table, zip(*coefficients, strict=True))
    alphas = 1 / np.sqrt(sigmas**2 + 1)
    signal, sigma = _table(alphas), _table(sigmas * alphas)

    def step(state, output, i, noise):
        x, before = state
        x0, _ = to_x0_and_noise(schedule.prediction, x, output, signal[i], sigma[i])
        return of_x[i] * x + of_now[i] * x0 + of_before[i] * before, x0

    return Sampler(chosen.astype(np.float32), 1.0, lambda x: (x, jnp.zeros(x.shape, jnp.float32)), _unscaled, step)


def _second_order(sigmas: np.ndarray, i: int, *, first: bool) -> tuple[float, float, float]:
    """Weights of x, x_0 and the last step's x_0 in step i (equations 4.1 and B.8 of DPM-Solver++); first: of first order."""
    alpha, sigma = (lambda s: 1 / np.sqrt(s**2 + 1)), (lambda s: s / np.sqrt(s**2 + 1))
    now, after = sigmas[i], sigmas[i + 1]
    of_x, gain = sigma(after) / sigma(now), alpha(after) * (1 - after / now)  # exp(-h) = after / now, h the step in log(signal / noise)
    if first:
        return of_x, gain, 0.0
    ratio = np.log(sigmas[i - 1] / now) / np.log(now / after)
    return of_x, gain * (1 + 0.5 / ratio), -0.5 * gain / ratio
