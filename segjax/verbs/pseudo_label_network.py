"""The networks of a pseudo-label stage as one compiled function: stylization, every network's answer, their mean, label and confidence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import label_spaces
from segjax.errors import ConfigError
from segjax.ops import inference as views
from segjax.ops import photometric, prototypes, pseudo_labels, resize
from segjax.ops.fourier import Variant, amplitude_transfer
from segjax.runtime import mesh as meshes
from segjax.typing import IGNORE, Array
from segjax.verbs import inference
from segjax.verbs.pseudo_label_files import BINS


class Voter(NamedTuple):
    """One network. predict: a method's; state: what it takes. space, first: what its outputs mean (`build.output_space`).

    grey: its method shows it grey images. origin: its weights, for people; sha256: of them. features: (state, image) -> the features that
    its classifier reads, where it gives any.
    """

    predict: Any
    state: Any
    align_corners: bool
    space: label_spaces.LabelSpace
    first: int
    grey: bool
    origin: str
    sha256: str
    features: Any = None


class Look(NamedTuple):
    """Images are labelled in the look of others: their low-frequency amplitudes (`ops.fourier.amplitude_transfer`). dataset: of those."""

    dataset: Any
    beta: float
    variant: Variant


class Labeller:
    """Labels and confidences of batches, in the classes of `to`; compiles once for each shape of image and label.

    The mean of the networks' class probabilities is taken at the size that they see and resized bilinearly to the image's own, where the
    largest wins (FDA's multi-band transfer; the two-model system's single network). Deliberate difference from FDA's code: its mean is
    taken at the networks' stride, here at the size of their input, where every method's `predict` answers.
    Stylized images are not rounded or clipped on their way to the network, as in training; where all networks see grey images, image and
    style are turned grey first, as the two-model system describes it. ConfigError: networks of different outputs.
    """

    def __init__(
        self,
        voters: Sequence[Voter],
        to: label_spaces.LabelSpace,
        mesh: jax.sharding.Mesh,
        *,
        how: inference.Inference,
        look: Look | None,
        centroids: Mapping[str, Any] | None = None,
    ):
        """centroids: what `segjax centroids` leaves; the confidence is then 1 where the first network's feature is nearest to the label's
        centroid, else 0 (DiGA's consensus)."""
        first = voters[0]
        self._centroids = centroids
        if centroids is not None:
            _check_consensus(voters, centroids)
        for other in voters[1:]:
            if (other.space, other.first) != (first.space, first.first):
                raise ConfigError(
                    f"{first.origin} answers {first.space.name} and {other.origin} {other.space.name}: networks whose mean is taken "
                    "need the same outputs"
                )
        self._mesh, self._voters, self._how, self._look = mesh, tuple(voters), how, look
        self._states = meshes.replicate(tuple(voter.state for voter in voters), mesh)
        known = np.arange(to.num_classes) if to == first.space else label_spaces.mapping(first.space, to)
        self._table = np.concatenate([np.full(first.first, IGNORE, np.uint8), known.astype(np.uint8)])
        rows = meshes.batch_sharding(mesh)
        self._answer = jax.jit(self._label, static_argnames=("canvas", "fitted"), out_shardings=(rows, rows))

    def put(self, batch: dict[str, Any], style: np.ndarray | None) -> dict[str, jax.Array]:
        """A batch of `evaluation_batches` (and its style images, uint8 of the images' shape) on its way to the devices."""
        arrays = {"image": batch["image"], "size": batch["size"]} | ({} if style is None else {"style": style})
        return meshes.put_batch(arrays, self._mesh)

    def __call__(self, arrays: dict[str, jax.Array], *, canvas: tuple[int, int], fitted: bool) -> tuple[jax.Array, jax.Array]:
        """(label uint8 [B,*canvas], 255 where the classes have no such answer; bin of its confidence, uint16 of `BINS`). Returns at once.

        fitted: the images were resized to one size, and their own ("size") differ within the canvas.
        """
        return self._answer(self._states, arrays, self._table, canvas=canvas, fitted=fitted)

    def _label(self, states, arrays: dict[str, Array], table: Array, *, canvas: tuple[int, int], fitted: bool) -> tuple[Array, Array]:
        image = arrays["image"]
        if self._look is not None:
            image, style = (arrays[name].astype(jnp.float32) for name in ("image", "style"))
            if all(voter.grey for voter in self._voters):
                image, style = photometric.greyscale(image), photometric.greyscale(style)
            image = amplitude_transfer(image, style, self._look.beta, variant=self._look.variant)
        total: dict[bool, Array] = {}
        for voter, state in zip(self._voters, states, strict=True):
            found = self._probability(voter, state, image) / len(self._voters)
            total[voter.align_corners] = total.get(voter.align_corners, 0) + found
        probability = sum(self._at(canvas, part, arrays["size"], corners, fitted) for corners, part in total.items())
        label = jnp.take(table, jnp.argmax(probability, -1).astype(jnp.uint8))
        if self._centroids is not None:
            nearest = self._nearest(states[0], image, arrays["size"], canvas, fitted)
            return label, jnp.where(label == jnp.take(table, nearest), BINS - 1, 0).astype(jnp.uint16)
        return label, pseudo_labels.confidence_bins(jnp.max(probability, -1)).astype(jnp.uint16)

    def _probability(self, voter: Voter, state: Any, image: Array) -> Array:
        """One network's class probabilities at the size of its input, float32 [B,h,w,K]."""
        how, size = self._how, (image.shape[1], image.shape[2])
        ask = inference.windowed(lambda image: voter.predict(state, (), image), how)
        place = lambda logits: logits if logits.shape[1:3] == size else resize.bilinear(logits, size, voter.align_corners)
        found = views.combine_views(ask, image, place, scales=how.scales, flip=how.flip, combine=how.combine)
        several = len(how.scales) * (1 + how.flip) > 1
        return found if several and how.combine == "softmax" else jax.nn.softmax(found.astype(jnp.float32), -1)

    def _nearest(self, state: Any, image: Array, size: Array, canvas: tuple[int, int], fitted: bool) -> Array:
        """The class of the nearest centroid at the labels' size, uint8 [B,*canvas]."""
        centroids: Any = self._centroids
        voter, known = self._voters[0], centroids["counts"] > 0
        features = voter.features(state, image)
        own = image.shape[1], image.shape[2]
        found = prototypes.nearest_centroid(features, centroids["centroids"], own, known, align_corners=voter.align_corners)
        return resize.nearest_within(found, size, canvas) if fitted else resize.nearest(found, canvas)

    @staticmethod
    def _at(canvas: tuple[int, int], probability: Array, size: Array, align_corners: bool, fitted: bool) -> Array:
        if fitted:
            return resize.bilinear_within(probability, size, canvas, align_corners)
        return probability if probability.shape[1:3] == canvas else resize.bilinear(probability, canvas, align_corners)


def _check_consensus(voters: Sequence[Voter], centroids: Mapping[str, Any]) -> None:
    """ConfigError: no or several networks' features, or centroids of another network's classes."""
    first = voters[0]
    if len(voters) > 1 or first.features is None or first.grey:
        raise ConfigError(
            f"consensus of {', '.join(voter.origin for voter in voters)}: expected one network that sees colour and gives features"
        )
    if len(centroids["centroids"]) != first.first + first.space.num_classes:
        raise ConfigError(
            f"{len(centroids['centroids'])} centroids for {first.origin}, which answers {first.space.name}: make them with it"
        )


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a batch, in order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
