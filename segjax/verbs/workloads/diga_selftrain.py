"""DiGA's self-training step over ENet: two source views, their distillation, the target's labels by consensus, the mixed image, Adam."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from segjax.methods import diga_selftrain
from segjax.nets.enet import ENet
from segjax.runtime.optim import make_optimizer
from segjax.verbs.workloads import Workload, training
from segjax.weights.enet import ENET_PYTORCH


def make(*, devices: int, batch: int = 2, height: int = 0, width: int = 0, classes: int = 19, dtype: str = "") -> Workload:
    """Defaults: 2 source and 2 target images of 128x192 a device in float32 on a CPU, of 512x896 in bfloat16 on an accelerator."""
    dtype = dtype or training.accelerated("float32", "bfloat16")
    height, width = height or training.accelerated(128, 512), width or training.accelerated(192, 896)
    model = ENet(classes, dtype=jnp.dtype(dtype))
    optimizer = make_optimizer(name="adam", lr=5e-4, schedule="poly", total_steps=10**6)
    method = diga_selftrain.make(model=model, optimizer=optimizer)
    rows = batch * devices
    image, label = jax.ShapeDtypeStruct((rows, height, width, 3), jnp.uint8), jax.ShapeDtypeStruct((rows, height, width), jnp.uint8)
    shapes = {"source_image": image, "source_label": label, "target_image": image, "target_label": label}
    width_of_features = jax.eval_shape(method.init, jax.random.key(0), shapes).centroids.shape[-1]
    centroids = np.random.default_rng(0).standard_normal((classes, width_of_features), np.float32)
    frozen = {"centroids": {"centroids": jnp.asarray(centroids), "counts": jnp.ones((classes,), jnp.float32)}}
    sizes = {"batch": batch, "height": height, "width": width, "classes": classes, "dtype": dtype}
    workload = training.of_method(method, frozen, shapes, classes=classes, sizes=sizes, dtype=dtype)
    # two programs draw different views, so the peer's answer is that of a plain forward pass
    return dataclasses.replace(
        workload,
        peer="diga_torch",
        adopt=lambda carry, weights: (training.adopted(model, ENET_PYTORCH, carry[0], weights), carry[1]),
        compared=lambda carry, inputs: training.evaluated(model, carry[0], inputs),
        tolerance={"logits": training.TOLERANCE[dtype]["others"], "others": workload.tolerance},
    )
