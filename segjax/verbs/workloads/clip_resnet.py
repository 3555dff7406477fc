"""CLIP's ResNet-50 tower, one forward pass to the vector in the space of the texts, beside OpenAI's form of it in torch."""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.nets.clip_resnet import ModifiedResNet
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import layouts


def make(
    *,
    devices: int,
    batch: int = 0,
    image_size: int = 224,
    width: int = 64,
    layers: tuple[int, ...] = (3, 4, 6, 3),
    heads: int = 32,
    embed_dim: int = 1024,
    dtype: str = "",
) -> Workload:
    """Defaults: one image a device in float32 on a CPU, 64 in bfloat16 on an accelerator."""
    dtype, batch = dtype or training.accelerated("float32", "bfloat16"), batch or training.accelerated(1, 64)
    sizes: dict[str, Any] = {"image_size": image_size, "width": width, "layers": layers, "heads": heads, "embed_dim": embed_dim}
    net = lambda kind: ModifiedResNet(**sizes, dtype=kind)
    image = (batch * devices, image_size, image_size, 3)

    def projected(kind, variables, inputs):
        found: Any = net(kind).apply(variables, inputs["image"])
        return found["projected"]

    return forward.workload(
        projected,
        jax.eval_shape(net(jnp.float32).init, jax.random.key(0), jnp.zeros(image)),
        {"image": image},
        layout=lambda weights: layouts.known()["clip_openai_vision"].layout(weights),
        rows=batch * devices,
        sizes={"batch": batch, **sizes},
        dtype=dtype,
        peer="clip_resnet_torch",
    )
