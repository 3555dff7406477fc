"""The first stage of CLOUDS (Benigmim et al., CVPR 2024, arXiv 2312.09788): a mask-classification network learns the source.

L = 2 CE(class) + 5 BCE(mask) + 5 dice(mask), summed over every prediction set (Mask2Former's losses, `segjax.ops.mask_losses`)

The network is `segjax.nets.mask2former` over a frozen CLIP, whose pixel decoder and transformer decoder learn. It is plain supervised
training of a Mask2Former as well. Code: yasserben/CLOUDS.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from segjax.nets import mask_learning
from segjax.nets.apply import predictor, to_float
from segjax.nets.initial import initial
from segjax.ops.mask_losses import POINTS, WEIGHTS, Ignored, Weights, semantic_targets
from segjax.ops.photometric_views import SSD, ssd_view
from segjax.runtime.state import TrainState
from segjax.runtime.update import descend
from segjax.typing import Batch, Frozen, Key, Method, Metrics


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    weights: tuple[float, float, float, float] = WEIGHTS,
    points: int = POINTS,
    ignored: Ignored = "negative",
    jitter: tuple[float, float, float, float] | tuple[()] = SSD,
    jitter_probability: float = 0.5,
    backbone_trains: bool = False,
    accumulate: int = 1,
) -> Method:
    """weights: of the class, mask and dice losses, and of a query without an object in the first. points: places at which a mask is scored.
    ignored: "negative", pixels without a label are outside of every matched mask, as released; "left_out".
    jitter, jitter_probability: `ops.photometric_views.ssd_view` of the source; () for none.
    backbone_trains: a backbone that is not frozen runs in training mode (BatchNorm by the batch, stochastic depth). Off, as released: its
    running statistics also where its weights learn.

    One mask for each class of an image. Predictions are the student's; there is no other. Random choices follow (seed, step).
    """
    fixed, losses = mask_learning.fixed(model), {"weights": Weights(*weights), "points": points, "ignored": ignored}

    def init(key: Key, batch: Batch) -> TrainState:
        del batch
        init_key, key = jax.random.split(key)
        return TrainState.create(key, initial(model, init_key), optimizer, fixed=fixed)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        del frozen
        view_key, loss_key = jax.random.split(state.step_key())
        image, targets = to_float(batch["source_image"]), semantic_targets(batch["source_label"], model.num_classes)
        image = ssd_view(view_key, image, jitter, probability=jitter_probability) if jitter else image
        inputs = {"masks": targets.masks, "classes": targets.classes}
        if fixed:
            inputs |= mask_learning.as_inputs(mask_learning.features(model, state.variables, image)[0])
        else:
            inputs["image"] = image

        def terms(params: Any, part: dict[str, jnp.ndarray], batch_stats: Any, key: Key):
            return mask_learning.learned_terms(model, params, batch_stats, part, key, train=backbone_trains, **losses)

        return descend(state, terms, inputs, optimizer, key=loss_key, accumulate=accumulate, fixed=fixed)

    return Method(init, step, predictor(model))
