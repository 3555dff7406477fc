"""One block of a MiT's stage (B5's widths), forward and backward from the sum of the cubes of its output, beside the same in torch."""

import jax
import jax.numpy as jnp

from segjax.nets.mit import Block
from segjax.verbs.workloads import Workload, forward, training
from segjax.weights import layouts

HEADS, RATIOS, WIDTHS = (1, 2, 5, 8), (8, 4, 2, 1), (64, 128, 320, 512)


def make(*, devices: int, batch: int = 1, image: int = 512, stage: int = 1, width: int = 0, dtype: str = "") -> Workload:
    """The block sees the map that the stage (1 to 4) makes of a square image: image / 4 pixels a side in stage 1, half of that in the next.

    width: channels, B5's by default (32, 64, 160, 256 are B0's). float32 on a CPU, bfloat16 on an accelerator."""
    dtype, width, side = dtype or training.accelerated("float32", "bfloat16"), width or WIDTHS[stage - 1], image >> stage + 1
    net = lambda kind: Block(HEADS[stage - 1], RATIOS[stage - 1], 4 * width, 1e-6, 1e-5, kind)
    shape = (batch * devices, side, side, width)

    def answer(kind, variables, inputs):
        # the weights by themselves, as the layout has them: stacked, for a stage is scanned
        loss = lambda params, x: (net(kind).apply({"params": _first(params)}, x, 0.0)[0].astype(jnp.float32) ** 3).sum()
        return forward.gradients(loss, variables["params"], inputs["x"])

    one = jax.eval_shape(lambda key, x: net(jnp.float32).init(key, x, 0.0), jax.random.key(0), jnp.zeros(shape))["params"]
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), one)
    return forward.workload(
        answer,
        {"params": stacked},
        {"x": shape},
        layout=lambda weights: layouts.known()["mit_nvlabs"].layout(weights),
        rows=batch * devices,
        sizes={"batch": batch, "image": image, "stage": stage, "width": width},
        dtype=dtype,
        peer="mit_torch",
        at=(f"block{stage}",),
    )


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)
