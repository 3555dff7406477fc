"""Class centroids over a data set: the mean features of each image's classes, kept one file an image, then their running mean.

DIR/partial/means/INDEX.npz     an image's means [K,D] and which classes hold enough pixels [K]; written whole or not at all
DIR/centroids.safetensors       "centroids" float32 [K,D], "counts" float32 [K] (held at the cap; 0: no image has the class)
DIR/centroids.json              label space, in how many images each class counted, and what it was made from
"""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import evaluation
from segjax.errors import ConfigError, Preempted
from segjax.nets.apply import to_float
from segjax.ops import prototypes, resize
from segjax.runtime import mesh as meshes
from segjax.runtime import workdir
from segjax.runtime.preemption import Preemption
from segjax.runtime.prefetch import Prefetch
from segjax.typing import IGNORE, Array
from segjax.verbs import evaluate, folder, frozen, startup
from segjax.verbs.progress import progress
from segjax.verbs.pseudo_label_files import write
from segjax.verbs.pseudo_label_network import local_rows
from segjax.weights import safetensors_io

FILE, SUMMARY = "centroids.safetensors", "centroids.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """dataset: its labels are not read. size: (height, width) for the network, None keeps the images' own. The rest as the verb says."""

    dataset: Any
    size: tuple[int, int] | None
    passes: int
    cap: int
    min_pixels: int
    batch_size: int


def finish(
    job: Job, network: evaluate.Network, mesh: jax.sharding.Mesh, place: pathlib.Path, settings: Mapping[str, Any], *, on_change: str
) -> dict[str, Any]:
    """Makes both files and, last of all, done.json, which is returned. ConfigError when the folder holds work of other settings."""
    stale = on_change == "continue" and folder.changes(place, settings)
    startup.barrier("compared settings")
    folder.prepare(place, settings, mesh, on_change=on_change)
    begun, first = time.monotonic(), jax.process_index() == 0
    with workdir.claim(place):
        if stale and first:
            shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)
        startup.barrier("cleared")
        _images(job, network, mesh, place)
        startup.barrier("all images")
        means, counted = _read(place, len(job.dataset))
        centroids, counts = _running_mean(job, means, counted)
        done = {
            "stage": settings["stage"],
            "digest": folder.digest(settings),
            "product": FILE,
            "scores": {},
            "images": len(job.dataset),
            "classes": int(np.sum(counts > 0)),
        }
        if first:
            about = {"label_space": network.space.name, "network": network.stage.name}
            safetensors_io.write(place / FILE, {"centroids": centroids, "counts": counts}, {frozen.CONTENT: "class centroids", **about})
            done["centroids_sha256"] = safetensors_io.sha256(place / FILE)
            images = dict(zip(network.space.classes, counted.sum(0).tolist(), strict=True))
            kept = {key: done[key] for key in ("digest", "images", "centroids_sha256")}
            options = {key: getattr(job, key) for key in ("passes", "cap", "min_pixels")}
            folder.write_json(place / SUMMARY, {**about, "images_of_class": images, "dims": centroids.shape[1], **options, **kept})
            folder.write_json(place / folder.DONE, {**done, "seconds": round(time.monotonic() - begun, 1)})
            shutil.rmtree(place / folder.PARTIAL, ignore_errors=True)
        startup.barrier("wrote done.json")
    return done


def _images(job: Job, network: evaluate.Network, mesh: jax.sharding.Mesh, place: pathlib.Path) -> None:
    """The network over every batch that lacks an image's file."""
    path = lambda index: place / folder.PARTIAL / "means" / f"{index:06d}.npz"
    missing = frozenset(index for index in range(len(job.dataset)) if not path(index).is_file())
    startup.barrier("looked for images")  # before another process writes one
    if not missing:
        return
    model, variables = network.stage.model, meshes.replicate(network.state.ema_variables, mesh)
    rows = meshes.batch_sharding(mesh)
    found = jax.jit(
        lambda variables, image, size: _means(model, variables, image, size, fitted=job.size is not None, least=job.min_pixels),
        out_shardings=(rows, rows),
    )
    batches = evaluation.evaluation_batches(
        job.dataset,
        batch_size=-(-job.batch_size // mesh.size) * mesh.size,
        size=job.size,
        only=missing,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    feed = Prefetch(batches, lambda batch: (batch, meshes.put_batch({key: batch[key] for key in ("image", "size")}, mesh)))
    with contextlib.closing(feed), Preemption() as preemption, progress("centroids", len(missing)) as advance:
        for number in itertools.count():
            try:
                batch, arrays = feed.next()
            except StopIteration:
                break
            if reason := preemption.requested(number):
                done = len(job.dataset) - sum(not path(index).is_file() for index in range(len(job.dataset)))
                raise Preempted(f"{reason}: {done} of {len(job.dataset)} images in {place}; the same command goes on with the rest")
            means, counted = (local_rows(part) for part in found(variables, arrays["image"], arrays["size"]))
            for index, *parts in zip(batch["index"].tolist(), means, counted, strict=True):
                if index in missing:
                    buffer = io.BytesIO()
                    np.savez(buffer, means=parts[0], counted=parts[1])
                    write(path(index), buffer.getvalue())
                    advance(1)


def _means(model: Any, variables: Any, image: Array, size: Array, *, fitted: bool, least: int) -> tuple[Array, Array]:
    """Mean feature of each image's classes [B,K,D] and which hold `least` pixels of the feature's size [B,K].

    fitted: images have been resized to one size; else what lies beyond an image's own size is repeated border and counts nowhere.
    """
    outputs = model.apply(variables, to_float(image), train=False)
    if "features" not in outputs:
        raise ConfigError(f"centroids need features, and {type(model).__name__} gives {', '.join(outputs)} alone")
    label = prototypes.predicted_labels(outputs["logits"])
    if not fitted:
        height, width = image.shape[1:3]
        inside = (jnp.arange(height)[:, None] < size[:, :1, None]) & (jnp.arange(width) < size[:, 1:, None])
        label = jnp.where(resize.nearest(inside, (label.shape[1], label.shape[2])), label, IGNORE)
    return prototypes.image_means(outputs["features"], label, model.num_classes, min_pixels=least)


def _read(place: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Means [N,K,D] and counted [N,K] of all images in order."""
    parts = []
    for index in range(count):
        with np.load(place / folder.PARTIAL / "means" / f"{index:06d}.npz") as stored:
            parts.append((stored["means"], stored["counted"]))
    means, counted = zip(*parts, strict=True)
    return np.stack(means), np.stack(counted)


def _running_mean(job: Job, means: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [K,D] and counts [K] after all passes, computed alike in every process."""
    add = jax.jit(lambda centroids, counts, means, counted: prototypes.accumulate(centroids, counts, means, counted, cap=job.cap))
    state = np.zeros(means.shape[1:], np.float32), np.zeros(means.shape[1], np.float32)
    for _ in range(job.passes):
        state = add(*state, means, counted)
    return np.asarray(state[0]), np.asarray(state[1])
