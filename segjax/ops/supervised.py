"""The supervised terms that every method starts from: cross-entropy of the main head, plus a share of the auxiliary one."""

from segjax.ops.pixel_losses import upsampled_cross_entropy
from segjax.typing import Array, Terms


def supervised_terms(
    outputs: dict[str, Array],
    label: Array,
    *,
    align_corners: bool,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    name: str = "loss/ce",
    weight: Array | float = 1.0,
) -> Terms:
    """Cross-entropy over the valid pixels, up-sampled to the label's size, as {name: (sum, weight)}.

    outputs: "logits" [B,h,w,K] and, from a two-level network, "aux_logits", whose cross-entropy enters with `aux_weight` (AdaptSegNet:
    0.1) as a term of its own. label [B,H,W], 255 ignored. class_weights: one a class, then the mean is the weighted one (divided by
    the sum of weights, as torch). weight: of both terms in the total.
    """

    def term(logits, share):
        summed, count = upsampled_cross_entropy(logits, label, align_corners=align_corners, class_weights=class_weights)
        return weight * share * summed, count

    terms = {name: term(outputs["logits"], 1.0)}
    if "aux_logits" in outputs:
        terms[f"{name}_aux"] = term(outputs["aux_logits"], aux_weight)
    return terms
