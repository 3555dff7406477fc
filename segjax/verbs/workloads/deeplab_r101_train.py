"""DeepLabV2-ResNet101's training step: forward, cross-entropy, backward, SGD with momentum (`methods.source_only`)."""

import jax.numpy as jnp

from segjax.nets.deeplab import DeepLabV2
from segjax.nets.scan import Remat
from segjax.verbs.workloads import Workload, training
from segjax.weights.resnet import DEEPLABV2_RESNET


def make(
    *,
    devices: int,
    batch: int = 0,
    height: int = 0,
    width: int = 0,
    classes: int = 19,
    dtype: str = "",
    unroll: int = 1,
    remat: Remat = "none",
) -> Workload:
    """Defaults: one image of 128x256 a device in float32 on a CPU, 8 of 512x1024 in bfloat16 on an accelerator. unroll: blocks to a turn
    of the scan; remat: what of a block is computed again for the gradient (none, wide, all)."""
    dtype = dtype or training.accelerated("float32", "bfloat16")
    return training.supervised(
        DeepLabV2(classes, dtype=jnp.dtype(dtype), unroll=unroll, remat=remat),
        DEEPLABV2_RESNET,
        {"name": "sgd", "lr": 2.5e-4, "momentum": 0.9, "weight_decay": 5e-4},
        devices=devices,
        batch=batch or training.accelerated(1, 8),
        height=height or training.accelerated(128, 512),
        width=width or training.accelerated(256, 1024),
        dtype=dtype,
        peer="deeplab_torch",
    )
