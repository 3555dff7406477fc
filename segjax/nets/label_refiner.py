"""Pseudo-labels refined by SAM, MobileSAM or EfficientSAM inside a compiled step: `ops.sam_refine` with a network bound to it.

refined = refine_labels(module, variables, key, image, label, num_classes=19)    # under jit: no array leaves the device
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segjax.errors import ConfigError
from segjax.nets.initial import shapes
from segjax.ops import masks, resize, sam_refine
from segjax.ops.sam_refine import MIN_AREA, NUM_POINTS, Prompts, Refined
from segjax.typing import Array, Batch, Frozen, Key


def encode(module: Any, variables: Any, image: Array) -> Array:
    """Features [B,h,w,C] of RGB images uint8 [B,H,W,3]: the longest side is resized to the frame, or the image stretched to it.

    On CPU one image of each queue (`queues_of`) after the other: what an image leaves between two layers is hundreds of MB.
    Differs from the original by the resized image not being rounded to whole numbers (PIL's is): at most half a level of 255.
    """
    variables = jax.tree.map(jnp.asarray, variables)  # numpy's would be constants inside of a loop, which jax does not take

    def whole(image: Array) -> Array:
        x, inner = _framed(module, image)
        return module.apply(variables, x, jnp.broadcast_to(jnp.asarray(inner, jnp.int32), (len(image), 2)), method="encode")

    def each(image: Array) -> Array:
        queued = image.reshape(queues, -1, *image.shape[1:])
        found = lax.map(whole, jnp.moveaxis(queued, 1, 0))
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(len(image), *x.shape[2:]), found)

    queues = queues_of(len(image))
    return whole(image) if queues == len(image) else lax.platform_dependent(image, cpu=each, default=whole)


def _framed(module: Any, image: Array) -> tuple[Array, tuple[int, int]]:
    """Images uint8 [B,H,W,3] in their frames, float32 in [0,1], and (height, width) of what they fill of it."""
    size, side = (image.shape[1], image.shape[2]), module.image_size
    inner = masks.fitted(size, side, stretch=module.stretch)
    x = image.astype(jnp.float32) / 255
    if module.stretch:
        return resize.bilinear(x, inner), inner
    if min(inner) >= min(size):
        x = resize.between(resize.between(x, resize.taps(size[1], inner[1]), 2), resize.taps(size[0], inner[0]), 1)
    else:
        x = jax.image.resize(x, (len(image), *inner, 3), "linear", antialias=True)  # PIL's bilinear: it averages when it shrinks
    return jnp.pad(x, ((0, 0), (0, side - inner[0]), (0, side - inner[1]), (0, 0))), inner


def queues_of(batch: int) -> int:
    """In how many queues `batch` images are worked through (`ops.sam_refine.refine`): one a device of the mesh, if they divide."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.gcd(batch, jax.device_count() if mesh.empty else mesh.size)


def refine_labels(
    module: Any,
    variables: Any,
    key: Key,
    image: Array | None,
    label: Array,
    *,
    num_classes: int,
    features: Array | None = None,
    min_area: int = MIN_AREA,
    num_points: int = NUM_POINTS,
    places: int | None = None,
    erode: bool = False,
    chunk: int | None = None,
    remove_overlaps: bool = True,
    second_pass: bool = False,
) -> Refined:
    """label int [B,H,W] (255: unknown) of RGB images uint8 [B,H,W,3], refined (`ops.sam_refine`). No gradient.

    key: one, or one for each image [B]. module: `nets.sam.Sam`, `MobileSam` or `EfficientSam`. features: of `encode`, where they are kept;
    the image is not read then. chunk: prompts of an image that are decoded at a time (`chunk_of`). min_area is in pixels of the label
    (CLOUDS: 5000 of 768 x 768).
    ConfigError: an image of another size than its label, more points than the network takes, a second pass by EfficientSAM.
    """
    variables = jax.tree.map(jnp.asarray, variables)
    check(module, num_points, second_pass)
    if image is not None and image.shape[:3] != label.shape:
        raise ConfigError(f"labels {list(label.shape)} of images {list(image.shape)}: expected one size")
    if features is None:
        if image is None:
            raise ConfigError("refine_labels: give the image, or its features")
        features = encode(module, variables, image)
    prompts = sam_refine.component_prompts(
        key, label, num_classes=num_classes, min_area=min_area, num_points=num_points, places=places, erode=erode
    )
    told: dict[str, Any] = dict(num_classes=num_classes, chunk=chunk, remove_overlaps=remove_overlaps, second_pass=second_pass)
    return answer(module, variables, features, label, prompts, **told)


def chunk_of(chunk: int | None) -> int:
    """How many prompts are decoded at a time if nobody says: few on a CPU, which gains nothing from more and decodes fewer in vain."""
    return chunk or (2 if jax.default_backend() == "cpu" else 4)


def answer(
    module: Any, variables: Any, features: Array, label: Array, prompts: Prompts, *, chunk: int | None = None, **told: Any
) -> Refined:
    """label int [B,H,W] as the network's masks for these prompts make it; features: of `encode`. told: see `ops.sam_refine.refine`."""
    variables = jax.tree.map(jnp.asarray, variables)
    size, side = (label.shape[1], label.shape[2]), module.image_size
    inner = masks.fitted(size, side, stretch=module.stretch)
    scale = jnp.asarray([inner[1] / size[1], inner[0] / size[0]], jnp.float32)
    queues = queues_of(len(label))
    queued = features.reshape(queues, -1, *features.shape[1:])

    def decode(image: Array, points: Array, kinds: Array, logits: Array | None) -> Array:
        own = sam_refine.chosen(queued, image)
        return module.apply(variables, own, points * scale, kinds, logits, method="decode", best=True)[0][:, :, 0]

    low = 4 * features.shape[1], 4 * features.shape[2]
    rows, columns = masks.full_size_matrices(low, (side, side), inner, size, stretch=module.stretch)
    enlarge = lambda logits: masks.enlarged(logits, rows, columns)
    chunk = min(chunk_of(chunk), prompts.valid.shape[1])
    return sam_refine.refine(label, prompts, decode, enlarge, chunk=chunk, queues=queues, max_slots=module.max_slots, **told)


def check(module: Any, num_points: int, second_pass: bool) -> None:
    """ConfigError for what a network cannot be asked."""
    name = type(module).__name__
    if num_points < 1 or (module.max_slots is not None and num_points > module.max_slots):
        raise ConfigError(f"{num_points} points a prompt: expected 1 or more, and for {name} at most {module.max_slots or 'any number'}")
    if second_pass and module.max_slots is not None:
        raise ConfigError(f"a second pass gives the network its own masks as prompts, which {name} does not take: use SAM or MobileSAM")


def kept_features(batch: Batch, segmenter: Any) -> Array | None:
    """The segmenter's features of the generated images, where the batch brings them. ConfigError: of another grid."""
    kept, rows = batch.get("target_sam_features"), batch["target_image"].shape[0]
    grid = segmenter.image_size // segmenter.patch
    if kept is not None and kept.shape[:3] != (rows, grid, grid):
        expected = f"[{rows}, {grid}, {grid}, channels] of {type(segmenter).__name__}"
        raise ConfigError(f"target_sam_features {list(kept.shape)}: expected {expected}: are they another segmenter's?")
    return kept


def frozen_weights(frozen: Frozen, segmenter: Any) -> Any:
    """The segmenter's variables. ConfigError: none, or another network's."""
    if not isinstance(frozen, dict) or "segmenter" not in frozen:
        raise ConfigError('method.segmenter reads weights: set the stage\'s frozen={"segmenter": FILE} (mobile_sam.pt), or segmenter=None')
    found = frozen["segmenter"]
    flat = lambda tree: {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    has, wants = flat(found), flat(shapes(segmenter))
    if odd := sorted(name for name in has.keys() | wants.keys() if has.get(name) != wants.get(name)):
        told = f"{odd[0]} is {has.get(odd[0], 'absent')}, method.segmenter ({type(segmenter).__name__}) has {wants.get(odd[0], 'nothing')}"
        raise ConfigError(f'frozen["segmenter"]: {told} ({len(odd)} differ): the file is another network\'s')
    return found
