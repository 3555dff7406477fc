"""CLIP's vision transformer (ViT-B/16's sizes), one forward pass to the pooled vector, beside Hugging Face's."""

from typing import Any

import jax
import jax.numpy as jnp

from segjax.nets.vit import VisionTransformer
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import layouts


def make(
    *,
    devices: int,
    batch: int = 0,
    image_size: int = 224,
    patch_size: int = 16,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    dtype: str = "",
) -> Workload:
    """Defaults: one image a device in float32 on a CPU, 64 in bfloat16 on an accelerator."""
    dtype, batch = dtype or training.accelerated("float32", "bfloat16"), batch or training.accelerated(1, 64)
    sizes: dict[str, Any] = {"image_size": image_size, "patch_size": patch_size, "width": width, "layers": layers, "heads": heads}
    net = lambda kind: VisionTransformer(**sizes, mlp_width=4 * width, dtype=kind)

    def pooled(kind, variables, inputs):
        found: Any = net(kind).apply(variables, inputs["image"])
        return found["pooled"]

    image = (batch * devices, image_size, image_size, 3)
    return forward.workload(
        pooled,
        jax.eval_shape(net(jnp.float32).init, jax.random.key(0), jnp.zeros(image)),
        {"image": image},
        layout=lambda weights: layouts.known()["clip_vision_hf"].layout(weights),
        rows=batch * devices,
        sizes={"batch": batch, **sizes},
        dtype=dtype,
        peer="clip_encoder_torch",
    )
