"""A personalize stage's step by shapes alone, at Stable Diffusion 1.x's sizes: no weights, no image, no device of its mesh."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.generation.diffusion import Networks
from segjax.methods import dreambooth
from segjax.nets.clip_text import TextTransformer
from segjax.nets.unet import UNet
from segjax.nets.vae import VAE
from segjax.runtime import mesh as meshes
from segjax.typing import Method
from segjax.verbs import build, personalize_work

PUBLISHED = Networks(TextTransformer(width=768, layers=12, heads=12, mlp_width=3072), UNet(), VAE())
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
IMAGE = 1024, 2048


class Shapes(NamedTuple):
    """A step without weights: what `runtime.compile.compile_step(method, state, frozen, batch, mesh)` takes; about: its dtype and crop."""

    method: Method
    state: Any
    frozen: Any
    batch: Any
    about: dict[str, Any]


def shapes(spec: Mapping[str, Any], mesh: jax.sharding.Mesh, where: str) -> Shapes:
    """The step of a stage over Stable Diffusion 1.x and a 2048 x 1024 image by shapes alone; its batch must divide over the mesh."""
    auto = spec["dtype"] if spec["dtype"] != "auto" else "bfloat16"
    dtype = build.compute_dtype(auto, f"{where}dtype")
    networks = Networks(*(module.clone(dtype=dtype) for module in PUBLISHED))
    spec = {**spec, "crop": spec["crop"] or networks.vae.sample_size}
    made = personalize_work.method(spec, networks, SCHEDULER, where)
    batch = meshes.batch_spec({"element": np.zeros(spec["batch_size"] // jax.process_count(), np.int32)}, mesh)
    state = jax.eval_shape(made.init, jax.random.key(0), batch)
    modules, streams = networks._asdict(), dreambooth.STREAMS[: 2 if spec["class_prompt"] else 1]
    weights = lambda name: {"params": jax.eval_shape(modules[name].init, jax.random.key(0), *modules[name].example())["params"]}
    kept = [name for name in ("vae", *personalize_work.frozen_names(spec)) if name != "vae" or not spec["cache"]]
    frozen: dict[str, Any] = {name: weights(name) for name in kept}
    frozen["ids"] = jax.ShapeDtypeStruct((len(streams), networks.text.context_length), jnp.int32)
    latents = (spec["cache"], *[spec["crop"] // networks.vae.stride] * 2, networks.vae.latent_channels)
    for stream, size in zip(streams, ((1, *IMAGE, 3), (spec["class_count"], spec["crop"], spec["crop"], 3)), strict=False):
        if spec["cache"]:
            posterior = {name: jax.ShapeDtypeStruct(latents, jnp.float32) for name in ("mean", "log_variance")}
            frozen[f"{stream}_moments"] = posterior
        else:
            frozen[f"{stream}_images"] = jax.ShapeDtypeStruct(size, jnp.uint8)
    overrides = build.overrides(spec["sharding"], f"{where}sharding")
    state = meshes.with_shardings(state, meshes.shard_rules(state, mesh, overrides))
    about = {"dtype": jnp.dtype(dtype).name, "crop": spec["crop"]}
    return Shapes(made, state, meshes.with_shardings(frozen, meshes.shard_rules(frozen, mesh)), batch, about)
