"""DreamBooth: Stable Diffusion personalized on one image (Ruiz et al. 2022, arXiv 2208.12242; as DATUM's train_dreambooth.py has it).

z = scaling * sample of the VAE's posterior of a random crop,   z_t = signal[t] z + noise[t] e,   t uniform,
L = mean (UNet(z_t, t, text) - target)^2,   target = e or the velocity, as the model was trained;   with prior preservation
L = L_instance + prior_weight * L_class over class images under the class prompt, as many as there are crops of the image.

The UNet and, where asked for, the text encoder learn, whole or by low-rank adapters; the VAE never does. There is one image: a batch is a
row of element numbers, and the crop, t, e and the posterior's sample of an element are drawn on the device from the run's seed and its
number alone, so they differ from element to element and from device to device, and are the same on every mesh.

Batch 1: DATUM takes 1,000 steps of one crop each. A batch of B for 1,000 / B steps sees the same 1,000 draws, B of them averaged in every
gradient. It is not the same run: AdamW moves a weight by about the learning rate a step whatever B is, so it goes 1/B as far; and B of the
draws are of one and the same network. What comes closest is 1,000 / B steps with B times the rate, up to where that diverges; 1,000
steps of B see B times as many crops at B times the cost.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from segjax.errors import ConfigError
from segjax.nets import lora
from segjax.nets.apply import to_float
from segjax.nets.layers import replicated
from segjax.ops.noise_schedule import Schedule, to_x0_and_noise
from segjax.ops.two_views import by_view, one_batch
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import Array, Batch, Frozen, Key, Method, Metrics, Terms

STREAMS = ("instance", "class")
"""The one image, and the images of its class for prior preservation."""


class Draws(NamedTuple):
    """Of elements [B]. sample, noise: standard normal [B,h,w,C], of the VAE's posterior and e. times: int32 [B]."""

    sample: Array
    noise: Array
    times: Array


def draw(key: Key, elements: Array, shape: tuple[int, ...], timesteps: int) -> Draws:
    """What each element of a stream draws, from its own number alone. shape: of its latents."""

    def one(element: Array) -> Draws:
        sample_key, noise_key, time_key = jax.random.split(jax.random.fold_in(key, element), 3)
        normal = lambda key: jax.random.normal(key, shape)
        return Draws(normal(sample_key), normal(noise_key), jax.random.randint(time_key, (), 0, timesteps))

    return jax.vmap(one)(elements)


def crops(key: Key, elements: Array, images: Array, size: int) -> Array:
    """A random window uint8 [B,size,size,3] of each element: element i looks at image i modulo the number of `images` [N,H,W,3]."""
    count, height, width, channels = images.shape

    def one(element: Array) -> Array:
        top_key, left_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, element), 1))
        top = jax.random.randint(top_key, (), 0, height - size + 1)
        left = jax.random.randint(left_key, (), 0, width - size + 1)
        return lax.dynamic_slice(images, (element % count, top, left, 0), (1, size, size, channels))[0]

    return jax.vmap(one)(elements)


def moments(vae: Any, variables: Any, images: Array, key: Key, elements: Array, size: int) -> dict[str, Array]:
    """The VAE's posterior of each element's crop: "mean" and "log_variance", float32 [B,h,w,C]."""
    found = vae.apply(variables, to_float(crops(key, elements, images, size)), method="encode")
    return dict(zip(("mean", "log_variance"), found, strict=True))


def stream_key(key: Key, stream: str) -> Key:
    """The key from which the elements of one of `STREAMS` draw; key: of the run's seed."""
    return jax.random.fold_in(key, STREAMS.index(stream))


def networks(params: Any, frozen: Frozen, lora_scale: float) -> dict[str, Any]:
    """{"text", "unet"}: the parameters that a step computes with, its adapters merged; what is not in `params` is in `frozen`."""
    found = {}
    for name in ("text", "unet"):
        if name in params:
            found[name] = params[name]
            continue
        base, adapters = frozen[name]["params"], params.get(f"{name}_lora")
        found[name] = base if adapters is None else lora.merged(base, adapters, lora_scale)
    return found


def make(
    *,
    text: Any,
    unet: Any,
    vae: Any,
    schedule: Schedule,
    optimizer: optax.GradientTransformation,
    crop: int,
    train_text: bool = True,
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    prior_weight: float = 1.0,
    accumulate: int = 1,
) -> Method:
    """text, unet, vae: the Linen modules of a Stable Diffusion 1.x or 2.x. crop: side of a crop in pixels. accumulate: parts that a batch
    is worked off in, for the memory of one. lora_rank > 0 trains adapters of that rank beside the attention kernels, times lora_alpha
    (default: the rank) / rank; the step computes with the merged kernels, so merging later changes nothing.

    Batch: {"element": int32 [B]}. Frozen: "ids" int32 [1 or 2,N], the tokens of the prompt and, for prior preservation, of the class
    prompt; for each of `STREAMS` in use either "NAME_images" uint8 [N,H,W,3] with "vae" (its variables), or "NAME_moments", the posteriors
    of the crops of elements 0, 1, ..., N-1, which later elements look at again; "unet" and "text" (variables) where these do not
    train as they are. State: params "unet", "text" or "unet_lora", "text_lora"; init leaves zeros (`with_variables` brings the model) and
    fresh adapters. predict takes uint8 images and gives what the UNet makes of them when half of their latents' variance is
    noise: float RGB [B,H,W,3] in [0,1], denoised in one step under the prompt.

    Differences from DATUM's script (a patched diffusers 0.12.1): the VAE's posterior and the class images are drawn per element, class
    images in turn and not shuffled; gradient clipping lacks torch's 1e-6; each prompt is encoded once a step, not once an image.
    """
    names = ("unet", "text") if train_text else ("unet",)
    scale = (lora_rank if lora_alpha is None else lora_alpha) / lora_rank if lora_rank else 0.0

    @functools.cache  # init is traced twice, and these networks take seconds
    def shapes(name: str) -> Any:
        module = {"unet": unet, "text": text}[name]
        return jax.eval_shape(module.init, jax.random.key(0), *module.example())["params"]

    def init(key: Key, batch: Batch) -> TrainState:
        del batch
        params: dict[str, Any] = {}
        for number, name in enumerate(names):
            if lora_rank:
                params[f"{name}_lora"] = lora.adapters(jax.random.fold_in(key, number), shapes(name), lora_rank)
            else:
                params[name] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(name))
        return TrainState.create(key, {"params": params}, optimizer)

    def posterior(frozen: Frozen, stream: str, key: Key, elements: Array) -> dict[str, Array]:
        if f"{stream}_moments" in frozen:
            kept = frozen[f"{stream}_moments"]
            return {name: replicated(value)[elements % value.shape[0]] for name, value in kept.items()}
        return moments(vae, _vae(frozen), replicated(frozen[f"{stream}_images"]), key, elements, crop)

    def noisy(frozen: Frozen, stream: str, run_key: Key, elements: Array) -> tuple[Array, Array, Array]:
        """(z_t, t, target) of the elements of a stream."""
        key = stream_key(run_key, stream)
        found = lax.stop_gradient(posterior(frozen, stream, key, elements))
        drawn = draw(key, elements, found["mean"].shape[1:], len(schedule.betas))
        latents = vae.scaling_factor * (found["mean"] + jnp.exp(0.5 * found["log_variance"]) * drawn.sample)
        return (
            schedule.add_noise(latents, drawn.noise, drawn.times),
            drawn.times,
            schedule.target(latents, drawn.noise, drawn.times),
        )

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        streams = STREAMS[: frozen["ids"].shape[0]]

        def terms(params: Any, part: dict[str, Array], batch_stats: Any, key: Key) -> tuple[Terms, Any]:
            del key  # every element has its own
            elements = part["element"]
            found = networks(params, frozen, scale)
            context = text.apply({"params": found["text"]}, frozen["ids"])["last"]
            made = [noisy(frozen, stream, state.key, elements) for stream in streams]
            z, times, target = (jnp.stack(several, 1) for several in zip(*made, strict=True))
            texts = jnp.broadcast_to(context, (elements.shape[0], *context.shape))
            output = unet.apply({"params": found["unet"]}, one_batch(z), one_batch(times), one_batch(texts))
            error = (by_view({"": output}, len(streams))[""] - target) ** 2
            size = jnp.asarray(error[:, 0].size, jnp.float32)
            result = {"loss/instance": (error[:, 0].sum(), size)}
            if len(streams) > 1:
                result["loss/class"] = (prior_weight * error[:, 1].sum(), size)
            return result, batch_stats

        return descend(state, terms, {"element": batch["element"]}, optimizer, key=state.step_key(), accumulate=accumulate)

    def predict(state: TrainState, frozen: Frozen, image: Array) -> Array:
        found, variables = networks(state.params, frozen, scale), _vae(frozen)
        mean, _ = vae.apply(variables, to_float(image), method="encode")
        half = int(np.argmin(np.abs(schedule.alphas_cumprod - 0.5)))
        times = jnp.full(image.shape[:1], half)
        noise = draw(state.key, jnp.arange(image.shape[0]), mean.shape[1:], len(schedule.betas)).noise
        z = schedule.add_noise(vae.scaling_factor * mean, noise, times)
        context = text.apply({"params": found["text"]}, frozen["ids"][:1])["last"]
        output = unet.apply({"params": found["unet"]}, z, times, jnp.broadcast_to(context, (z.shape[0], *context.shape[1:])))
        signal, sigma = (jnp.float32(table[half]) for table in (schedule.signal, schedule.noise))
        clean, _ = to_x0_and_noise(schedule.prediction, z, output, signal, sigma)
        return jnp.clip(vae.apply(variables, clean / vae.scaling_factor, method="decode"), 0.0, 1.0)

    return Method(init, step, predict)


def _vae(frozen: Frozen) -> Any:
    if "vae" not in frozen:
        raise ConfigError("this run has kept its latents alone (cache), there is no VAE to encode other images with: set cache=0")
    return frozen["vae"]
