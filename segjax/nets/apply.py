"""How every method runs a network: in training (statistics and dropout) and for a prediction at the image's own size."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.nets.layers import normalised_by_view
from segjax.ops.resize import bilinear
from segjax.ops.two_views import by_view, one_batch, view
from segjax.typing import Array, Batch, Frozen, Key, State


def to_float(image: Array) -> Array:
    """uint8 image as float32 in [0,1]."""
    return image.astype(jnp.float32) / 255.0


def target_image(batch: Batch) -> Array:
    """The float target images of a batch. ConfigError when the stage's data has none."""
    if "target_image" not in batch:
        raise ConfigError(f"the method reads target images, but the batches hold {', '.join(batch)} alone: set data.target of the stage")
    return to_float(batch["target_image"])


def pair_images(batch: Batch) -> tuple[Array, Array]:
    """The float source and target images of a batch. ConfigError: no targets, or other numbers or sizes than sources."""
    source, target = to_float(batch["source_image"]), target_image(batch)
    if source.shape != target.shape:
        raise ConfigError(
            f"{source.shape[0]} source images of {source.shape[1:3]} and {target.shape[0]} target images of {target.shape[1:3]} "
            "in a batch: mixing needs one number and one crop of both"
        )
    return source, target


def train_forward(model, params, batch_stats, image: Array, key: Key | None) -> tuple[dict[str, Array], dict]:
    """Outputs of `model` on a float image in training mode, and the new BatchNorm statistics (`{}` for a network without them).

    `key` draws the dropout, and what else a network draws in training (HRDA: its window, by a method `draw`); None leaves it out.
    """
    return _train(model, {"params": params, "batch_stats": batch_stats}, image, key, 1)


def views_forward(
    model, params, batch_stats, images: Array, key: Key, *, statistics: Literal["apart", "together"] = "apart"
) -> tuple[dict[str, Array], dict]:
    """`train_forward` of several pictures of each image, float [B,V,H,W,3], in one pass over [B * V]; outputs in that order.

    statistics: "apart", BatchNorm takes each view by itself and in turn, so the numbers are those of V passes (what the UDA codes do);
    "together", it takes all of them as one batch. Dropout and a network's own draws differ between views either way.
    """
    views = images.shape[1]
    with normalised_by_view(views if statistics == "apart" else 1):
        return _train(model, {"params": params, "batch_stats": batch_stats}, one_batch(images), key, views)


def in_turn(
    model, params, batch_stats, images: dict[str, Array], key: Key, *, kept: tuple[str, ...] | None = None
) -> tuple[dict[str, dict[str, Array]], dict]:
    """Outputs in training mode of several named batches of float images, each normalised by itself, and the BatchNorm statistics.

    The running statistics see those of `kept` (default: all) one after the other. Where all are kept and have one shape, the network runs
    once over all of them, with the numbers of one pass each (but for dropout's draws): one program of half the length, and each gradient is
    reduced over the devices once.
    """
    kept = tuple(images) if kept is None else kept
    if len(images) > 1 and set(kept) == set(images) and len({image.shape for image in images.values()}) == 1:
        outputs, after = views_forward(model, params, batch_stats, jnp.stack(list(images.values()), 1), key)
        views = by_view(outputs, len(images))
        return {name: view(views, number) for number, name in enumerate(images)}, after
    found, keys = {}, jax.random.split(key, len(images))
    for number, (name, image) in enumerate(images.items()):
        found[name], after = train_forward(model, params, batch_stats, image, keys[number])
        batch_stats = after if name in kept else batch_stats
    return found, batch_stats


def _train(model, variables: dict[str, Any], image: Array, key: Key | None, views: int) -> tuple[dict[str, Array], dict]:
    drawn = model.draw(key, (image.shape[1], image.shape[2]), views) if key is not None and hasattr(model, "draw") else {}
    rngs = {} if key is None else {"dropout": key}
    outputs, changed = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs, **drawn)
    return outputs, changed.get("batch_stats", {})


def teacher_forward(
    model, params, batch_stats, image: Array, key: Key | None = None, *, train: bool = False
) -> tuple[dict[str, Array], dict]:
    """What a teacher says of a float image, without gradient, and its BatchNorm statistics, which move with `train` alone.

    train: as if it learned, with the batch's own statistics and dropout drawn with `key`.
    """
    if train:
        outputs, batch_stats = train_forward(model, params, batch_stats, image, key)
    else:
        outputs = model.apply({"params": params, "batch_stats": batch_stats}, image, train=False)
    return jax.lax.stop_gradient(outputs), batch_stats


def full_size_logits(model, variables, image: Array, look: Callable[[Array], Array] | None = None) -> Array:
    """Logits float32 [B,H,W,K] of a uint8 image [B,H,W,3], up-sampled bilinearly with the network's own corner rule."""
    seen = to_float(image) if look is None else look(to_float(image))
    logits = model.apply(variables, seen, train=False)["logits"]
    size = image.shape[1], image.shape[2]
    return logits if logits.shape[1:3] == size else bilinear(logits, size, align_corners=model.align_corners)


def predictor(model, look: Callable[[Array], Array] | None = None) -> Callable[[State, Frozen, Array], Array]:
    """A method's `predict`: full-size logits of the averaged network where the state has one, else of the trained one.

    look: what the method does to float images before the network sees them, in training and here (model 1's greyscale).
    """

    def predict(state: State, frozen: Frozen, image: Array) -> Array:
        del frozen
        return full_size_logits(model, state.ema_variables, image, look)

    return predict
