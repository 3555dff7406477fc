"""Text to images with Stable Diffusion: token ids in, uint8 images out, one compiled program.

Within it: text embeddings, the text's keys and values once, the sampler's scan with both halves of classifier-free guidance in one batch,
the autoencoder's decoder, rounding. An image depends on prompt, seed and its own index alone, bit for bit, whatever the batch or the mesh:

- its noise is drawn from `fold_in(key(seed), index)`;
- images are made in units of a fixed size (`unit`, one image by default), and the compiled body of a unit is the same whatever surrounds
  it: each device works its units off in a loop of its own (`shard_map`), whose length is an argument of the program and not a constant.
  XLA's reductions over one batch do differ from those over another in the last bit; here no batch but the unit's ever reaches them.

A GPU's compiler chooses among algorithms by timing them; `deterministic` forbids it that. A CPU's library cuts small
convolutions up by the number of threads; these networks have none there (`ops.conv_products`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from segjax.generation import schedulers
from segjax.generation.solvers import Sampler
from segjax.runtime.mesh import AXES
from segjax.typing import Array, Key


class Networks(NamedTuple):
    """The Linen modules: TextTransformer, UNet, VAE. Their variables are a dict of the same names."""

    text: Any
    unet: Any
    vae: Any


def sample(
    networks: Networks,
    variables: Mapping[str, Any],
    sampler: Sampler,
    ids: Array,
    negative: Array,
    start: Array,
    noise: Callable[[Array], Array],
    *,
    guidance: float,
    trajectory: bool = False,
) -> Array:
    """Latents [B,h,w,C], as the UNet has them, for texts int [B,N] away from the text `negative` [N], from standard normal `start`.

    guidance: prediction = free + guidance (conditional - free); 1 or less leaves the negative text out (as diffusers does).
    noise, trajectory: see `schedulers.run`.
    """
    guided = guidance > 1
    texts = jnp.concatenate([jnp.broadcast_to(negative, ids.shape), ids]) if guided else ids
    context = networks.text.apply(variables["text"], texts)["last"]
    memory = networks.unet.apply(variables["unet"], context, method="keys_values")

    def predict(x: Array, timestep: Array) -> Array:
        if not guided:
            return networks.unet.apply(variables["unet"], x, timestep, memory=memory)
        free, conditional = jnp.split(networks.unet.apply(variables["unet"], jnp.concatenate([x, x]), timestep, memory=memory), 2)
        return free + guidance * (conditional - free)

    return schedulers.run(sampler, predict, start, noise, trajectory=trajectory)


def decode(networks: Networks, variables: Mapping[str, Any], latents: Array) -> Array:
    """Images float32 [B,H,W,3] in [0,1] of the UNet's latents."""
    image = networks.vae.apply(variables["vae"], latents / networks.vae.scaling_factor, method="decode")
    return jnp.clip(image, 0.0, 1.0)


def to_uint8(image: Array) -> Array:
    """[0,1] -> 0..255, rounded to the nearest, halves to even (as diffusers does)."""
    return jnp.round(image * 255).astype(jnp.uint8)


def image_noise(key: Key, indices: Array, shape: tuple[int, ...]) -> tuple[Array, Callable[[Array], Array]]:
    """Of images `indices` int [B]: the first latents [B,*shape], and the function that draws for call i. Each from its own index alone."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(indices)

    def draw(number: Array) -> Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)

    return draw(jnp.int32(0)), lambda i: draw(i + 1)


def generator(
    networks: Networks, sampler: Sampler, mesh: Mesh, *, size: tuple[int, int], guidance: float, deterministic: bool = True
) -> Callable[..., Array]:
    """The compiled `(variables, ids, negative, key, indices, units) -> images`, over every device of `mesh`.

    ids int [devices x capacity, unit, N] and indices int [devices x capacity, unit]: units of images, each device's in a row. units int
    [devices]: how many of its `capacity` units each device makes; the others stay black. negative int [N]. key: of the seed.
    Returns uint8 [devices x capacity, unit, H, W, 3]. size: (width, height) in pixels, multiples of the autoencoder's stride.
    """
    stride = networks.vae.stride
    shape = size[1] // stride, size[0] // stride, networks.vae.latent_channels

    def unit(variables, ids, negative, key, indices):
        start, noise = image_noise(key, indices, shape)
        latents = sample(networks, variables, sampler, ids, negative, start, noise, guidance=guidance)
        return to_uint8(decode(networks, variables, latents))

    def of_one_device(variables, ids, negative, key, indices, units):
        def body(n, images):
            made = unit(variables, ids[n], negative, key, indices[n])
            return lax.dynamic_update_index_in_dim(images, made, n, 0)

        images = jnp.zeros((*indices.shape, size[1], size[0], networks.vae.out_channels), jnp.uint8)
        return lax.fori_loop(0, units[0], body, images)

    whole, split = PartitionSpec(), PartitionSpec(AXES)
    specs = (whole, split, whole, whole, split, split)
    options = {"xla_gpu_deterministic_ops": True} if deterministic and mesh.devices.flat[0].platform == "gpu" else None
    return jax.jit(jax.shard_map(of_one_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False), compiler_options=options)


def dispatcher(
    make: Callable[..., Array],
    mesh: Mesh,
    variables: Mapping[str, Any],
    ids: np.ndarray,
    negative: np.ndarray,
    *,
    seed: int,
    unit: int = 1,
    capacity: int = 1,
) -> Callable[[Sequence[int]], Callable[[], np.ndarray]]:
    """`make` (of `generator`) as a function of unit numbers, at most devices x capacity of them: starts them, returns what fetches them.

    Unit u is the images u * unit, u * unit + 1, ...; image j has text j modulo the number of texts `ids` int [P,N]. What is fetched is
    uint8 [units,unit,H,W,3]. variables: on the mesh.
    """
    key = jax.random.key(seed)

    def dispatch(units: Sequence[int]) -> Callable[[], np.ndarray]:
        places = [n % mesh.size * capacity + n // mesh.size for n in range(len(units))]  # dealt out to the devices in turn
        indices = np.zeros((mesh.size * capacity, unit), np.int32)
        indices[places] = np.asarray(units, np.int32)[:, None] * unit + np.arange(unit, dtype=np.int32)
        work = np.bincount([place // capacity for place in places], minlength=mesh.size).astype(np.int32)
        images = make(variables, ids[indices % len(ids)], negative, key, indices, work)
        return lambda: np.asarray(images)[places]

    return dispatch


def with_kernels_in(variables: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Variables whose kernels have the compute dtype already: half the memory, and nothing to convert at every call."""
    cast = lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf
    return jax.tree_util.tree_map_with_path(cast, dict(variables))
