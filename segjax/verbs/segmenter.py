"""A promptable segmenter (SAM and its kin) on the devices of this machine: images encoded once, prompts decoded in few shapes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from segjax.errors import WeightsError
from segjax.ops import masks, prompts, resize
from segjax.runtime import mesh as meshes
from segjax.verbs import networks

CHUNK = 16
"""Full-size masks that are worked on at a time: at 1024 x 1024, 64 MiB."""


@dataclasses.dataclass(frozen=True)
class View:
    """An encoded image, or a crop of one. features [1,h,w,C]; size and inner: (height, width) of the image and of its copy in the frame."""

    features: jax.Array
    size: tuple[int, int]
    inner: tuple[int, int]
    matrices: tuple[np.ndarray, np.ndarray]


class Segmenter:
    """Encodes and decodes with one compilation a shape: one for images, one for each count of prompts, one for each size of image.

    With several devices images are spread over them where there are enough, prompts always; weights are on each.
    """

    def __init__(self, network: networks.Network, *, devices: int = -1):
        if not hasattr(network.module, "decode") or not hasattr(network.module, "stretch"):
            name = type(network.module).__name__
            raise WeightsError(f"--model: its network is a {name}, which takes no prompts: expected SAM, MobileSAM or EfficientSAM")
        self.module = network.module
        self.frame: int = self.module.image_size
        self.mesh = meshes.make_mesh(devices)
        self.variables = jax.device_put(network.variables, meshes.replicated(self.mesh))

    def views(self, images: Sequence[np.ndarray]) -> list[View]:
        """Encodes RGB uint8 [H,W,3] images of any sizes: one on every device, several spread over them (filled up with copies)."""
        prepared = [self._prepare(image) for image in images]
        more = 0 if len(images) == 1 else -len(images) % self.mesh.size
        filled = prepared + prepared[-1:] * more
        where = meshes.replicated(self.mesh) if len(filled) % self.mesh.size else meshes.batch_sharding(self.mesh)
        pixels, inner = np.stack([frame for frame, _ in filled]), np.array([size for _, size in filled], np.int32)
        features = _encode(self.module, self.variables, *jax.device_put((pixels, inner), where))
        sizes = [(image.shape[:2], size) for image, (_, size) in zip(images, prepared, strict=True)]
        return [self._view(features[n : n + 1], *both) for n, both in enumerate(sizes)]

    def decode(self, view: View, points: np.ndarray, labels: np.ndarray, *, multimask: bool) -> tuple[jax.Array, np.ndarray]:
        """(logits [P,M,h,w], predicted IoU [P,M]) of prompts [P,S,2], [P,S] (`ops.prompts`) in pixels of the view's image.

        The prompts are filled up to a bucket and to a multiple of the devices with prompts that hold nothing.
        """
        count = len(labels)
        wanted = -(-prompts.bucket(count, (1, 4, 16, 64)) // self.mesh.size) * self.mesh.size
        points = np.where((labels >= 0)[..., None], masks.to_frame(points, view.size, view.inner), points)
        wide = [(0, wanted - count), (0, 0)]
        points = np.pad(points.astype(np.float32), (*wide, (0, 0)))[None]
        labels = np.pad(labels, wide, constant_values=prompts.PADDING)[None]
        where = NamedSharding(self.mesh, PartitionSpec(None, meshes.AXES))
        prompted = jax.device_put((points, labels), where)
        logits, iou = _decode(self.module, self.variables, view.features, *prompted, multimask=multimask)
        return logits[0, :count], np.asarray(iou[0, :count])

    def measure(self, view: View, logits: np.ndarray | jax.Array, *, offset: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(stability [N], box [N,4], area [N]) of the full-size masks of logits [N,h,w]; none of them is kept."""
        padded = _filled(logits, CHUNK)
        found = _measure(padded, *view.matrices, offset)
        return tuple(np.asarray(x)[: len(logits)] for x in found)  # pyright: ignore[reportReturnType]

    def binary(self, view: View, logits: np.ndarray | jax.Array) -> np.ndarray:
        """Full-size masks bool [N,H,W] of logits [N,h,w]: logits above 0."""
        padded = _filled(logits, CHUNK)
        found = [np.asarray(_binary(padded[n : n + CHUNK], *view.matrices)) for n in range(0, len(padded), CHUNK)]
        return np.concatenate(found)[: len(logits)]

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The image in its frame, float32 [S,S,3] in [0,1], and its own part of it, (height, width)."""
        inner = masks.fitted(image.shape[:2], self.frame, stretch=self.module.stretch)
        if self.module.stretch:
            return np.asarray(_stretched(image, self.frame)), inner
        small = Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR)
        frame = np.zeros((self.frame, self.frame, 3), np.float32)
        frame[: inner[0], : inner[1]] = np.asarray(small, np.float32) / 255
        return frame, inner

    def _view(self, features: jax.Array, size: tuple[int, int], inner: tuple[int, int]) -> View:
        low = 4 * features.shape[1], 4 * features.shape[2]
        matrices = masks.full_size_matrices(low, (self.frame, self.frame), inner, size, stretch=self.module.stretch)
        return View(jax.device_put(features, meshes.replicated(self.mesh)), size, inner, matrices)


@functools.partial(jax.jit, static_argnums=0)
def _encode(module, variables, image, sizes):
    return module.apply(variables, image, sizes, method="encode")


@functools.partial(jax.jit, static_argnums=0, static_argnames="multimask")
def _decode(module, variables, features, points, labels, *, multimask: bool):
    return module.apply(variables, features, points, labels, method="decode", multimask=multimask)


@functools.partial(jax.jit, static_argnums=1)
def _stretched(image: Any, frame: int) -> jax.Array:
    """uint8 [H,W,3] -> float32 [frame,frame,3] in [0,1], bilinearly without antialiasing, as EfficientSAM does it."""
    return resize.bilinear(jnp.asarray(image)[None].astype(jnp.float32) / 255, (frame, frame))[0]


@jax.jit
def _measure(logits, rows, columns, offset):
    def one(logits):
        full = masks.full_size(logits, rows, columns)
        mask = full > 0
        return masks.stability_score(full, offset=offset), masks.mask_boxes(mask), jnp.sum(mask, (-2, -1), dtype=jnp.int32)

    chunks = logits.reshape(-1, CHUNK, *logits.shape[1:])
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(one, chunks))


@jax.jit
def _binary(logits, rows, columns):
    return masks.full_size(logits, rows, columns) > 0


def _filled(logits: np.ndarray | jax.Array, multiple: int) -> Any:
    """Filled up with zeros along the first axis to a multiple."""
    more = -len(logits) % multiple
    return logits if not more else jnp.pad(logits, ((0, more), (0, 0), (0, 0)))
