"""The supervised terms that every method starts from: cross-entropy of the main head, plus a share of the auxiliary one."""

from typing import Literal

from segjax.ops.pixel_losses import hard_pixels, upsampled_cross_entropy
from segjax.typing import Array, Terms


def supervised_terms(
    outputs: dict[str, Array],
    label: Array,
    *,
    align_corners: bool,
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    pixel_weight: Array | None = None,
    mean_over: Literal["valid", "all"] = "valid",
    hard: tuple[float, int] | None = None,
    name: str = "loss/ce",
    weight: Array | float = 1.0,
) -> Terms:
    """Cross-entropy over the valid pixels, up-sampled to the label's size, as {name: (sum, weight)}.

    outputs: "logits" [B,h,w,K] and, from a two-level network, "aux_logits", whose cross-entropy enters with `aux_weight` (AdaptSegNet:
    0.1) as a term of its own. label [B,H,W], 255 ignored. class_weights: one a class, then the mean is the weighted one (divided by
    the sum of weights, as torch). weight: of both terms in the total.
    pixel_weight float [B,H,W], mean_over "valid" or "all": see `upsampled_cross_entropy`; "all" is mmseg's and DiGA's division.
    hard: (threshold, min_kept), learn from hard pixels alone (`hard_pixels`, each head's own), divided by their number whatever
    mean_over says. They are chosen among the batch that this function sees, so from each part by itself when gradients are accumulated.
    """

    def term(logits, share):
        chosen, over = pixel_weight, mean_over
        if hard is not None:
            kept = hard_pixels(logits, label, threshold=hard[0], min_kept=hard[1], align_corners=align_corners)
            chosen, over = kept if pixel_weight is None else kept * pixel_weight, "valid"
        summed, count = upsampled_cross_entropy(
            logits, label, align_corners=align_corners, class_weights=class_weights, pixel_weight=chosen, mean_over=over
        )
        return weight * share * summed, count

    terms = {name: term(outputs["logits"], 1.0)}
    if "aux_logits" in outputs:
        terms[f"{name}_aux"] = term(outputs["aux_logits"], aux_weight)
    return terms
