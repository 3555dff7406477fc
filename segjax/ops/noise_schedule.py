"""The noise of a diffusion model: how much there is at each of its training timesteps, and what its network is trained to predict.

Tables are float64 numpy; functions of arrays are pure and take traced timesteps. Source: diffusers schedulers/scheduling_ddpm.py.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from segjax.typing import Array

PREDICTIONS = ("epsilon", "v_prediction", "sample")


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


def to_x0_and_noise(kind: str, sample: Array, output: Array, signal: Array, sigma: Array) -> tuple[Array, Array]:
    """(x_0, e) that a network's output stands for, given x_t = signal x_0 + sigma e."""
    if kind == "epsilon":
        return (sample - sigma * output) / signal, output
    if kind == "v_prediction":
        return signal * sample - sigma * output, signal * output + sigma * sample
    return output, (sample - signal * output) / sigma
