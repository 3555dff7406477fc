"""Noise schedules of diffusion models, from a diffusers `scheduler_config.json`; a key that is absent means diffusers' default.

What a schedule does to arrays is in `segjax.ops.noise_schedule`. Source: diffusers schedulers/scheduling_ddpm.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import ConfigError
from segjax.ops.noise_schedule import PREDICTIONS
from segjax.ops.noise_schedule import Schedule as Schedule  # samplers and the verbs take both from here
from segjax.ops.noise_schedule import to_x0_and_noise as to_x0_and_noise

UNSUPPORTED = ("thresholding", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


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
