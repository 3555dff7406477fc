"""The supervised terms that every method starts from: cross-entropy of the main head, plus shares of the others."""

from typing import Any, Literal

import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops.multi_resolution import cut
from segjax.ops.pixel_losses import hard_pixels, upsampled_cross_entropy
from segjax.typing import Array, Terms


def supervised_terms(
    outputs: dict[str, Array],
    label: Array,
    *,
    align_corners: bool,
    aux_weight: float = 0.1,
    detail_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    pixel_weight: Array | None = None,
    mean_over: Literal["valid", "all", "labelled"] = "valid",
    hard: tuple[float, int] | None = None,
    name: str = "loss/ce",
    weight: Array | float = 1.0,
) -> Terms:
    """Cross-entropy over the valid pixels, up-sampled to the label's size, as {name: (sum, weight)}.

    outputs: "logits" [B,h,w,K] and, from a two-level network, "aux_logits", whose cross-entropy enters with `aux_weight` (AdaptSegNet:
    0.1) as a term of its own. A network of two resolutions (`nets.hrda`) gives "detail_logits" of the window at "detail_corner" [1,2]:
    they learn its part of the label with `detail_weight`, which the fused logits give up; where the window is the whole crop, so do
    the "context_logits" with as much (HRDA's lambda_d, 0.1; hrda_head.py and experiments.py).
    label [B,H,W], 255 ignored. class_weights: one a class, then the mean is the weighted one (divided by the sum of weights, as torch).
    weight: of all terms in the total.
    pixel_weight float [B,H,W], mean_over "valid" or "all": see `upsampled_cross_entropy`; "all" is mmseg's and DiGA's division.
    "labelled" divides by the number of labelled pixels, whatever they weigh.
    hard: (threshold, min_kept), learn from hard pixels alone (`hard_pixels`, each head's own), divided by their number whatever
    mean_over says. They are chosen among the batch that this function sees, so from each part by itself when gradients are accumulated.
    """

    def term(logits, share, label=label, pixel_weight=pixel_weight):
        chosen, over = pixel_weight, mean_over
        if hard is not None:
            kept = hard_pixels(logits, label, threshold=hard[0], min_kept=hard[1], align_corners=align_corners)
            chosen, over = kept if pixel_weight is None else kept * pixel_weight, "valid"
        options: dict[str, Any] = dict(class_weights=class_weights, pixel_weight=chosen, mean_over="all" if over == "labelled" else over)
        summed, count = upsampled_cross_entropy(logits, label, align_corners=align_corners, **options)
        if over == "labelled":
            count = jnp.sum(label < logits.shape[-1], dtype=jnp.float32)
        return weight * share * summed, count

    terms, main = {}, 1.0
    if "detail_logits" in outputs:
        fused, detail = outputs["logits"].shape, outputs["detail_logits"]
        if label.shape[1] % fused[1] or label.shape[2] % fused[2] or outputs["detail_corner"].size != 2:
            raise ConfigError(f"fused logits {fused[1:3]} of a label {label.shape[1:]}: expected a divisor, and one window for all images")
        window = detail.shape[1] * (label.shape[1] // fused[1]), detail.shape[2] * (label.shape[2] // fused[2])
        corner = outputs["detail_corner"].reshape(2)
        parts = (cut(label, corner, window), None if pixel_weight is None else cut(pixel_weight, corner, window))
        terms[f"{name}_detail"] = term(detail, detail_weight, *parts)
        main -= detail_weight
        if window == label.shape[1:]:
            terms[f"{name}_context"] = term(outputs["context_logits"], detail_weight)
            main -= detail_weight
    terms = {name: term(outputs["logits"], main), **terms}
    if "aux_logits" in outputs:
        terms[f"{name}_aux"] = term(outputs["aux_logits"], aux_weight)
    return terms
