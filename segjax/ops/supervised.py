"""The supervised loss that every method starts from: cross-entropy of the main head, plus a share of the auxiliary one."""

import jax.numpy as jnp

from segjax.ops.pixel_losses import upsampled_cross_entropy
from segjax.typing import Array, Metrics


def supervised_loss(
    outputs: dict[str, Array],
    label: Array,
    *,
    align_corners: bool,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    name: str = "loss/ce",
) -> tuple[Array, Metrics]:
    """Mean cross-entropy over the valid pixels of the whole (sharded) batch, up-sampled to the label's size.

    outputs: "logits" [B,h,w,K] and, from a two-level network, "aux_logits", whose cross-entropy enters with `aux_weight` (AdaptSegNet:
    0.1). label [B,H,W], 255 ignored. class_weights: one a class, then the mean is the weighted one (divided by the sum of weights,
    as torch). Returns the loss and its parts under `name`.
    """

    def mean(logits):
        summed, weight = upsampled_cross_entropy(logits, label, align_corners=align_corners, class_weights=class_weights)
        return summed / jnp.where(weight > 0, weight, 1.0)

    main = mean(outputs["logits"])
    if "aux_logits" not in outputs:
        return main, {name: main}
    aux = mean(outputs["aux_logits"])
    return main + aux_weight * aux, {name: main, f"{name}_aux": aux}
