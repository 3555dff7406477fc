"""Stable Diffusion 1.5's UNet, one denoising step, beside diffusers'."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.nets.unet import UNet
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import layouts

TIMESTEP = 500


def make(
    *,
    devices: int,
    batch: int = 0,
    side: int = 0,
    widths: tuple[int, ...] = (),
    heads: int = 8,
    context: int = 768,
    tokens: int = 77,
    dtype: str = "",
) -> Workload:
    """Defaults: one latent of 32x32 a device and the first two levels with the middle in float32 on a CPU, 8 of 64x64 and the whole UNet in
    bfloat16 on an accelerator. The lowest level has no transformers where there are four, as in Stable Diffusion."""
    dtype, batch = dtype or training.accelerated("float32", "bfloat16"), batch or training.accelerated(1, 8)
    side, widths = side or training.accelerated(32, 64), widths or training.accelerated((320, 640), (320, 640, 1280, 1280))
    levels = len(widths)
    attends = tuple(levels < 4 or n < levels - 1 for n in range(levels))
    each: dict[str, Any] = {"heads": (heads,) * levels, "layers": (2,) * levels, "transformers": (1,) * levels}
    each |= {"down_attention": attends, "up_attention": attends[::-1]}
    net = lambda kind: UNet(widths, **each, context_features=context, sample_size=side, dtype=kind)
    latents, text = (batch * devices, side, side, 4), (batch * devices, tokens, context)
    times = np.full((batch * devices,), TIMESTEP, np.int32)
    shapes = jax.eval_shape(net(jnp.float32).init, jax.random.key(0), jnp.zeros(latents), times, jnp.zeros(text))
    return forward.workload(
        lambda kind, variables, inputs: net(kind).apply(variables, inputs["latents"], jnp.asarray(times), inputs["text"]),
        shapes,
        {"latents": latents, "text": text},
        layout=lambda weights: layouts.known()["unet_diffusers"].layout(weights),
        rows=batch * devices,
        sizes={"batch": batch, "side": side, "widths": widths, "heads": heads, "context": context, "tokens": tokens, "timestep": TIMESTEP},
        dtype=dtype,
        peer="unet_torch",
    )
