"""ENet's training step: forward, cross-entropy, backward, Adam (`methods.source_only`)."""

import jax.numpy as jnp

from segjax.nets.enet import ENet
from segjax.verbs.workloads import Workload, training
from segjax.weights.enet import ENET_PYTORCH


def make(*, devices: int, batch: int = 0, height: int = 0, width: int = 0, classes: int = 19, dtype: str = "") -> Workload:
    """Defaults: 8 images of 256x192 a device in float32 on a CPU, 8 of 512x1024 in bfloat16 on an accelerator."""
    dtype = dtype or training.accelerated("float32", "bfloat16")
    return training.supervised(
        ENet(classes, dtype=jnp.dtype(dtype)),
        ENET_PYTORCH,
        {"name": "adam", "lr": 5e-4},
        devices=devices,
        batch=batch or 8,
        height=height or training.accelerated(256, 512),
        width=width or training.accelerated(192, 1024),
        dtype=dtype,
        peer="enet_torch",
    )
