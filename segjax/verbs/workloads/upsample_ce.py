"""Up-sampling by 8 and cross-entropy in one pass (`ops.pixel_losses`), value and gradient, against the same with full-size logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.ops.pixel_losses import upsampled_cross_entropy
from segjax.verbs.workloads import Arrays, Workload


def make(*, devices: int, batch: int = 2, height: int = 512, width: int = 1024, classes: int = 19, stride: int = 8) -> Workload:
    """Logits float32 [batch a device,height/stride,width/stride,classes], labels uint8 [.,height,width] with one in 20 pixels ignored."""
    rows = batch * devices

    def draw(rng: np.random.Generator) -> Arrays:
        label = rng.integers(0, classes + 1, (rows, height, width))
        logits = 3 * rng.standard_normal((rows, height // stride, width // stride, classes), np.float32)
        return {"logits": logits, "label": np.where(label == classes, 255, label).astype(np.uint8)}

    def fused(logits, label):
        total, count = upsampled_cross_entropy(logits, label)
        return total / count

    def step(carry, inputs):
        value, gradient = jax.value_and_grad(fused)(inputs["logits"], inputs["label"])
        return carry, {"value": value, "gradient": gradient}

    def reference(carry, inputs):
        value, gradient = jax.jit(jax.value_and_grad(plain))(inputs["logits"], inputs["label"])
        return {"value": value, "gradient": gradient}

    sizes = {"batch": batch, "height": height, "width": width, "classes": classes, "stride": stride}
    return Workload(step, draw, reference, tolerance=1e-5, rows=rows, sizes=sizes, peer="upsample_ce_torch")


def plain(logits, label):
    """Up-sample all logits, then optax's cross-entropy over them: the mean over labelled pixels."""
    full = jax.image.resize(logits.astype(jnp.float32), (*label.shape, logits.shape[-1]), "bilinear")
    valid = label != 255
    loss = optax.softmax_cross_entropy_with_integer_labels(full, jnp.where(valid, label, 0).astype(jnp.int32))
    return jnp.sum(jnp.where(valid, loss, 0)) / jnp.sum(valid)
