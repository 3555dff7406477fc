"""SAM's image encoder (ViT-B's sizes), one forward pass, beside Hugging Face's."""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.nets.sam_encoder import ImageEncoder
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import sam


def make(
    *,
    devices: int,
    batch: int = 0,
    image_size: int = 1024,
    embed_dim: int = 768,
    depth: int = 0,
    num_heads: int = 12,
    mlp_dim: int = 3072,
    period: int = 3,
    window: int = 14,
    dtype: str = "",
) -> Workload:
    """Every `period`-th block is global. Defaults: one image a device and 3 of ViT-B's 12 blocks (two windowed, one global) in float32 on
    a CPU, 4 images and all blocks in bfloat16 on an accelerator."""
    dtype = dtype or training.accelerated("float32", "bfloat16")
    batch, depth = batch or training.accelerated(1, 4), depth or training.accelerated(3, 12)
    sizes: dict[str, Any] = {"image_size": image_size, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
    sizes |= {"mlp_dim": mlp_dim, "window": window, "global_blocks": tuple(range(period - 1, depth, period))}
    net = lambda kind: ImageEncoder(**sizes, dtype=kind)
    image = (batch * devices, image_size, image_size, 3)
    return forward.workload(
        lambda kind, variables, inputs: net(kind).apply(variables, inputs["image"]),
        jax.eval_shape(net(jnp.float32).init, jax.random.key(0), jnp.zeros(image)),
        {"image": image},
        layout=lambda weights: sam.BOTH,
        rows=batch * devices,
        sizes={"batch": batch, **sizes},
        dtype=dtype,
        peer="sam_encoder_torch",
        at=("image_encoder",),
    )
