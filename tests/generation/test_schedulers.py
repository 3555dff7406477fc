"""Samplers and the noise of training against diffusers: stored trajectories, and diffusers itself over many configs where it is there."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import ConfigError
from segjax.generation import noise, schedulers

CONFIG = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
CLASSES = {name: kind.names[0] for name, kind in schedulers.SAMPLERS.items()}


@pytest.fixture(scope="module")
def golden(goldens):
    folder = goldens / "schedulers"
    arrays, facts = np.load(folder / "golden.npz"), json.loads((folder / "arrays.json").read_text())

    def check(name, got):
        np.testing.assert_allclose(np.asarray(got), arrays[name], rtol=0, atol=facts[name]["atol"], err_msg=name)

    return json.loads((folder / "scheduler_config.json").read_text()), arrays, check


def trajectory(sampler, x, outputs, draws=None):
    """The latents after each call when call k of the network gives outputs[k], and what the network was given."""

    def walk(x, outputs, draws):
        def body(state, i):
            given = sampler.scale(state[0], i)
            state = sampler.step(state, outputs[i], i, None if draws is None else draws[i])
            return state, (state[0], given)

        return jax.lax.scan(body, sampler.start(x * np.float32(sampler.first_sigma)), jnp.arange(len(sampler.timesteps)))[1]

    return jax.jit(walk)(x, outputs[: len(sampler.timesteps)], draws)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "pndm", "dpmpp2m", "euler"])
def test_trajectories(golden, name, prediction):
    config, arrays, check = golden
    sampler = schedulers.make({**config, "prediction_type": prediction}, 10, name)
    latents, given = trajectory(sampler, arrays["in_x"], arrays["in_model_outputs"])
    check(f"out_{name}_{prediction}_10_timesteps", sampler.timesteps)
    check(f"out_{name}_{prediction}_10_trajectory", latents)
    if name == "euler":
        check(f"mid_euler_{prediction}_10_scaled_inputs", given)
        check(f"out_euler_{prediction}_10_init_noise_sigma", sampler.first_sigma)


def test_noise_of_training(golden):
    config, arrays, check = golden
    schedule = noise.from_config(config)
    check("out_betas", schedule.betas)
    check("out_alphas_cumprod", schedule.alphas_cumprod)
    x0, e = arrays["in_x0"], arrays["in_noise"]
    for t in arrays["in_add_noise_timesteps"]:
        timesteps = np.array([t])
        check(f"out_add_noise_{t}", jax.jit(schedule.add_noise)(x0, e, timesteps))
        check(f"out_velocity_{t}", schedule.velocity(x0, e, timesteps))
    for prediction, expected in (("epsilon", e), ("sample", x0), ("v_prediction", schedule.velocity(x0, e, np.array([250])))):
        kind = noise.from_config({**config, "prediction_type": prediction})
        np.testing.assert_array_equal(kind.target(x0, e, np.array([250])), expected)
        noisy = schedule.add_noise(x0, e, np.array([250]))
        back = noise.to_x0_and_noise(prediction, noisy, expected, schedule.signal[250], schedule.noise[250])
        np.testing.assert_allclose(back, (x0, e), rtol=0, atol=1e-5)


CASES = [
    *((name, *case) for name in CLASSES for case in [("leading", "epsilon", 7), ("trailing", "v_prediction", 16)]),
    *((name, "linspace", "epsilon", 20) for name in ("ddim", "dpmpp2m", "euler")),
    *((name, "leading", "epsilon", steps) for name in CLASSES for steps in (1, 2)),
    ("pndm", "leading", "v_prediction", 50),
]


@pytest.mark.parametrize(("name", "spacing", "prediction", "steps"), CASES)
def test_every_spacing_and_length_equals_diffusers(name, spacing, prediction, steps, monkeypatch):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    config = {**CONFIG, "timestep_spacing": spacing, "prediction_type": prediction, "clip_sample": False}
    theirs = getattr(diffusers, CLASSES[name]).from_config(config)
    theirs.set_timesteps(steps)
    sampler = schedulers.make(config, steps, name)
    np.testing.assert_allclose(sampler.timesteps, theirs.timesteps.numpy(), rtol=0, atol=1e-3)
    rng = np.random.default_rng(steps)
    x = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    outputs, draws = rng.normal(size=(2, len(sampler.timesteps), *x.shape)).astype(np.float32)
    given = iter(torch.from_numpy(draws))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(given))
    expected, sample = [], torch.from_numpy(x) * theirs.init_noise_sigma
    for i, t in enumerate(theirs.timesteps):
        theirs.scale_model_input(sample, t)
        sample = theirs.step(torch.from_numpy(outputs[i]), t, sample).prev_sample
        expected.append(sample.numpy())
    got, _ = trajectory(sampler, x, outputs, draws)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=5e-5 * scale)


def test_clipping_is_the_configs_choice():
    x, outputs = np.full((1, 1, 1, 1), 3.0, np.float32), np.zeros((8, 1, 1, 1, 1), np.float32)
    free, held = (trajectory(schedulers.make({**CONFIG, "clip_sample": clip}, 8, "ddim"), x, outputs)[0][-1] for clip in (False, True))
    assert float(free.item()) > 10 and abs(float(held.item())) <= 1


def test_betas():
    cosine = noise.from_config({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 10})
    assert cosine.betas[-1] == 0.999 and np.all(np.diff(cosine.betas) > 0)
    np.testing.assert_allclose(noise.from_config({}).betas[[0, -1]], [1e-4, 0.02])
    np.testing.assert_array_equal(noise.from_config({"trained_betas": [0.1, 0.2]}).betas, [0.1, 0.2])


@pytest.mark.parametrize(
    ("change", "steps", "name", "words"),
    [
        ({"_class_name": "HeunDiscreteScheduler"}, 5, "", "HeunDiscreteScheduler is not here"),
        ({}, 5, "heun", "sampler 'heun': expected one of ddim"),
        ({}, 0, "", "steps=0: expected 1 to 1000"),
        ({}, 1001, "", "steps=1001"),
        ({}, 1000, "", "timestep 1000 of 1000: take fewer"),
        ({}, 1000, "dpmpp2m", "take fewer steps"),
        ({"prediction_type": "flow"}, 5, "", "prediction_type='flow'"),
        ({"beta_schedule": "sigmoid"}, 5, "", "beta_schedule='sigmoid'"),
        ({"timestep_spacing": "log"}, 5, "", "timestep_spacing='log'"),
        ({"use_karras_sigmas": True}, 5, "euler", "use_karras_sigmas=True is not supported"),
        ({"skip_prk_steps": False}, 5, "", "Runge-Kutta"),
        ({"solver_order": 3}, 5, "dpmpp2m", "solver_order=3"),
        ({"variance_type": "learned"}, 5, "ddpm", "variance_type='learned'"),
        ({"final_sigmas_type": "one"}, 5, "euler", "final_sigmas_type='one'"),
    ],
)
def test_what_no_sampler_here_does_is_refused(change, steps, name, words):
    with pytest.raises(ConfigError, match=words):
        schedulers.make({**CONFIG, **change}, steps, name)
