"""The supervised contrastive loss in blocks (`ops.contrastive`), value and gradient, against all similarities at once.

Where those would not fit a usual memory (more than 8,192: gigabytes an array) the gradient of the first 512 anchors is held against theirs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops.contrastive import BLOCK, supervised_contrastive
from segjax.verbs.workloads import Arrays, Workload, training

TEMPERATURE = 0.07
LARGEST_DENSE, FEW = 8192, 512


def make(
    *,
    devices: int,
    pixels: int = 0,
    dims: int = 0,
    classes: int = 19,
    form: str = "negatives",
    block: int = BLOCK,
    precision: str = "highest",
) -> Workload:
    """`pixels` anchors a device against as many keys of all devices, each a unit vector of `dims` numbers.

    Defaults: 2,048 of 64 on a CPU, 32,768 of 256 on an accelerator. block, precision: `ops.contrastive`'s; torch's products have the same
    precision. There is no torch side above 8,192 on a CPU, whose memory it would fill."""
    pixels, dims = pixels or training.accelerated(2048, 32768), dims or training.accelerated(64, 256)
    rows = pixels * devices
    dense = rows <= LARGEST_DENSE
    loss = functools.partial(plain, temperature=TEMPERATURE, form=form)

    def draw(rng: np.random.Generator) -> Arrays:
        """Two views of pixels that training has begun to sort by class: frequent and rare classes, 5 % without a label."""
        often = 0.8 ** np.arange(classes)
        label = rng.choice(classes, rows, p=often / often.sum())
        centre = rng.normal(size=(classes, dims))[label]
        views = [centre + 1.5 * rng.normal(size=centre.shape) for _ in range(2)]
        anchors, keys = (np.asarray(view / np.linalg.norm(view, axis=1, keepdims=True), np.float32) for view in views)
        label = np.where(rng.random(rows) < 0.05, 255, label).astype(np.uint8)
        return {"anchors": anchors, "keys": keys, "label": label}

    def blocks(anchors, keys, label):
        how = {"num_classes": classes, "temperature": TEMPERATURE, "form": form, "block": block, "precision": precision}
        total, count = supervised_contrastive(anchors, keys, label, label, **how)
        return total / count

    def step(carry, inputs):
        value, (anchors, keys) = jax.value_and_grad(blocks, (0, 1))(inputs["anchors"], inputs["keys"], inputs["label"])
        return carry, {"value": value, "anchors": anchors, "keys": keys}

    def reference(carry, inputs):
        label = inputs["label"]
        if dense:
            value, (anchors, keys) = jax.jit(jax.value_and_grad(loss, (0, 1)))(inputs["anchors"], inputs["keys"], label, label)
            return {"value": value, "anchors": anchors, "keys": keys}
        few = inputs["anchors"][:FEW], inputs["keys"], label[:FEW], label
        return {"anchors": jax.jit(jax.grad(loss))(*few) * (label[:FEW] != 255).sum() / (label != 255).sum()}

    sizes = {"pixels": pixels, "dims": dims, "classes": classes, "form": form, "temperature": TEMPERATURE}
    sizes |= {"block": block, "precision": precision}
    rounded = precision != "highest" and jax.default_backend() != "cpu"
    peer = "contrastive_torch" if dense or jax.default_backend() != "cpu" else ""
    return Workload(step, draw, reference, tolerance=1e-2 if rounded else 1e-5, rows=rows, sizes=sizes, peer=peer)


def plain(anchors, keys, anchor_label, key_label, *, temperature: float, form: str):
    """All similarities at once, by autodiff, as the references write it (SupContrast)."""
    similarity = jnp.matmul(anchors, keys.T, precision="highest") / temperature
    similarity = similarity - jax.lax.stop_gradient(similarity.max(1, keepdims=True))
    valid = key_label != 255
    same = (anchor_label[:, None] == key_label) & valid
    power = jnp.exp(similarity) * valid
    if form == "all":
        log_prob = similarity - jnp.log(power.sum(1, keepdims=True))
    else:
        log_prob = similarity - jnp.log(power + (power * ~same).sum(1, keepdims=True))
    each = (same * log_prob).sum(1) / jnp.maximum(same.sum(1), 1)
    counts = anchor_label != 255
    return -(counts * each).sum() / counts.sum()
