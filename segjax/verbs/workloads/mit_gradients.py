"""A whole MiT, forward and backward from the sum of the cubes of its stages, beside the same in torch."""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.nets.mit import VARIANTS, MixTransformer
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import layouts


def make(*, devices: int, batch: int = 1, image: int = 0, variant: str = "", dtype: str = "") -> Workload:
    """Defaults: B0 and an image of 256x256 in float32 on a CPU, B5 and 512x512 in bfloat16 on an accelerator."""
    dtype, image = dtype or training.accelerated("float32", "bfloat16"), image or training.accelerated(256, 512)
    variant = variant or training.accelerated("b0", "b5")
    net = lambda kind: MixTransformer(variant=variant, drop_path=0.0, dtype=kind)
    shape = (batch * devices, image, image, 3)

    def answer(kind, variables, inputs):
        def loss(variables, x):
            stages: Any = net(kind).apply(variables, x)
            return sum(((stage.astype(jnp.float32) ** 3).sum() for stage in stages), jnp.zeros(()))

        return forward.gradients(loss, variables, inputs["x"])

    dims, depths = VARIANTS[variant]
    return forward.workload(
        answer,
        jax.eval_shape(net(jnp.float32).init, jax.random.key(0), jnp.zeros(shape)),
        {"x": shape},
        layout=lambda weights: layouts.known()["mit_nvlabs"].layout(weights),
        rows=batch * devices,
        sizes={"batch": batch, "image": image, "variant": variant, "dims": dims, "depths": depths},
        dtype=dtype,
        peer="mit_torch",
    )
