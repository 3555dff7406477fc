"""Between the values of a personalize stage and the training loop: the mesh, the method, the elements, the directories that are left."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from segjax.errors import ConfigError, WeightsError
from segjax.generation import directory, noise
from segjax.generation.diffusion import Networks
from segjax.methods import dreambooth
from segjax.runtime import mesh as meshes
from segjax.runtime import optim
from segjax.typing import Method
from segjax.verbs import build
from segjax.verbs.personalize_values import named


def make_mesh(spec: Mapping[str, Any], where: str) -> jax.sharding.Mesh:
    """The stage's mesh; where it says no `data`, as many devices as divide the batch. ConfigError: a batch that does not divide."""
    given = dict(spec["mesh"])
    if "data" not in given and jax.process_count() == 1:
        fsdp = given.get("fsdp", 1)
        rows = spec["batch_size"] // max(fsdp, 1)
        given["data"] = max((n for n in range(1, max(len(jax.devices()) // max(fsdp, 1), 1) + 1) if rows and rows % n == 0), default=1)
    mesh = build.call(meshes.make_mesh, given, f"{where}mesh")
    if spec["batch_size"] % mesh.size:
        near = -(-spec["batch_size"] // mesh.size) * mesh.size
        told = f"is not divisible by the {mesh.size} devices of the mesh: use {near}, or fewer devices"
        raise ConfigError(f"{named(where, 'batch_size')}={spec['batch_size']} {told}")
    return mesh


def method(spec: Mapping[str, Any], networks: Networks, scheduler: Mapping[str, Any], where: str) -> Method:
    """The DreamBooth method of a stage over these modules. ConfigError: values that it does not take, a crop that the VAE cannot halve."""
    if spec["crop"] % networks.vae.stride:
        raise ConfigError(f"{where}crop={spec['crop']}: expected a multiple of {networks.vae.stride}")
    optimizer = build.call(optim.make_optimizer, {"total_steps": spec["steps"], **spec["optimizer"]}, f"{where}optimizer")
    options = {key: spec[key] for key in ("crop", "train_text", "lora_rank", "lora_alpha", "prior_weight", "accumulate")}
    parts = {
        **networks._asdict(),
        "unet": networks.unet.clone(remat="all" if spec["remat"] else "none"),
        "schedule": noise.from_config(scheduler),
    }
    return dreambooth.make(**parts, optimizer=optimizer, **options)


def frozen_names(spec: Mapping[str, Any]) -> list[str]:
    """The networks whose own weights do not train: the text encoder, or what adapters stand beside."""
    return [name for name in ("text", "unet") if spec["lora_rank"] or (name == "text" and not spec["train_text"])]


def batches(batch_size: int, start: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's element numbers of every step from `start` on, without end."""
    rows = batch_size // jax.process_count()
    step = start
    while True:
        first = step * batch_size + jax.process_index() * rows
        yield {"element": np.arange(first, first + rows, dtype=np.int32)}
        step += 1


def lora_scale(spec: Mapping[str, Any]) -> float:
    """alpha / rank of the adapters, 0 without."""
    alpha = spec["lora_rank"] if spec["lora_alpha"] is None else spec["lora_alpha"]
    return alpha / spec["lora_rank"] if spec["lora_rank"] else 0.0


def export(model: directory.StableDiffusion, params: Mapping[str, Any], scale: float, path: pathlib.Path) -> None:
    """Writes the personalized model as a whole diffusers directory, or nothing. params: of the state, on this host. WeightsError."""
    frozen = {name: getattr(model, name).variables for name in ("text", "unet")}
    changed = {}
    for name, value in jax.device_get(dreambooth.networks(params, frozen, scale)).items():
        if name in params or f"{name}_lora" in params:
            changed[name] = dataclasses.replace(getattr(model, name), variables={"params": value}, types={})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        directory.write(temporary, dataclasses.replace(model, **changed))
        shutil.rmtree(path, ignore_errors=True)
        temporary.rename(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror}): free space, and the same command goes on") from error
