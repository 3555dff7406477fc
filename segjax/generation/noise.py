"""The noise of a diffusion model: how much there is at each of its training timesteps, and what its network is trained to predict.

Everything comes from a diffusers `scheduler_config.json`; a key that is absent means diffusers' default. Source: diffusers
schedulers/scheduling_ddpm.py. Tables are float64 numpy; functions of arrays are pure and take traced timesteps.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError
from segjax.typing import Array

PREDICTIONS = ("epsilon", "v_prediction", "sample")
UNSUPPORTED = ("thresholding", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """x_t = signal[t] x_0 + noise[t] e, with signal^2 + noise^2 = 1; float64 [timesteps].

    prediction: what the network predicts: "epsilon" (e), "v_prediction" (signal e - noise x_0) or "sample" (x_0).
    """

    betas: np.ndarray
    prediction: str

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """signal^2: the share of x_0's variance that is left at each timestep."""
        return np.cumprod(1.0 - self.betas)

    @property
    def signal(self) -> np.ndarray:
        return np.sqrt(self.alphas_cumprod)

    @property
    def noise(self) -> np.ndarray:
        return np.sqrt(1.0 - self.alphas_cumprod)

    def add_noise(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """x_t of x0 [B,...] with noise [B,...] at integer timesteps [B]."""
        signal, sigma = self._at(timesteps, x0)
        return signal * x0 + sigma * noise

    def velocity(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """signal e - noise x_0 (Salimans and Ho 2022, arXiv 2202.00512)."""
        signal, sigma = self._at(timesteps, x0)
        return signal * noise - sigma * x0

    def target(self, x0: Array, noise: Array, timesteps: Array) -> Array:
        """What the network is trained to predict."""
        if self.prediction == "sample":
            return x0
        return noise if self.prediction == "epsilon" else self.velocity(x0, noise, timesteps)

    def _at(self, timesteps: Array, like: Array) -> list[Array]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        return [jnp.asarray(table, jnp.float32)[timesteps].reshape(shape) for table in (self.signal, self.noise)]


def from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule of a scheduler_config.json. ConfigError: an option that no sampler here has."""
    for key in UNSUPPORTED:
        if config.get(key):
            raise ConfigError(f"scheduler_config.json: {key}={config[key]!r} is not supported: expected false")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ConfigError(f"scheduler_config.json: prediction_type={prediction!r}: expected {', '.join(PREDICTIONS)}")
    return Schedule(_betas(config), prediction)


def _betas(config: Mapping[str, Any]) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    count, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if kind == "linear":
        return np.linspace(first, last, count)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, count) ** 2
    if kind == "squaredcos_cap_v2":
        alphas = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alphas[1:] / alphas[:-1], 0.999)
    raise ConfigError(f"scheduler_config.json: beta_schedule={kind!r}: expected linear, scaled_linear or squaredcos_cap_v2")


def to_x0_and_noise(kind: str, sample: Array, output: Array, signal: Array, sigma: Array) -> tuple[Array, Array]:
    """(x_0, e) that a network's output stands for, given x_t = signal x_0 + sigma e."""
    if kind == "epsilon":
        return (sample - sigma * output) / signal, output
    if kind == "v_prediction":
        return signal * sample - sigma * output, signal * output + sigma * sample
    return output, (sample - signal * output) / sigma
