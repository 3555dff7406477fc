"""The labels of `segjax refine`: batches of one size through the device, files, and what changed."""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from segjax.data import files, pseudo, sealed
from segjax.data.dataset import Dataset
from segjax.data.features import WithFeatures
from segjax.nets.label_refiner import refine_labels
from segjax.runtime import mesh as meshes
from segjax.runtime.prefetch import Prefetch
from segjax.typing import IGNORE
from segjax.verbs import networks
from segjax.verbs.progress import progress
from segjax.verbs.pseudo_label_files import write, write_png
from segjax.verbs.pseudo_label_picture import shown
from segjax.verbs.segmenter_features import batches_by_size

PICTURE = "before_after.png"
_WIDE = 320  # pixels of each of the three parts of a strip


def make(
    dataset: Dataset,
    network: networks.Network,
    place: pathlib.Path,
    *,
    batch_size: int,
    seed: int,
    options: Mapping[str, Any],
    kept: WithFeatures | None = None,
) -> None:
    """Writes the labels that are missing below `place`/labels. options: of `nets.label_refiner.refine_labels`. kept: the same images with
    the network's features, which is then not asked for them."""
    paths = [place / pseudo.LABELS / name for name in pseudo.file_names(dataset)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    mesh = meshes.make_mesh(jax.device_count() if len(missing) >= jax.device_count() else 1)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    variables = jax.device_put(network.variables, meshes.replicated(mesh))
    key, where, told = jax.random.key(seed), meshes.batch_sharding(mesh), tuple(options.items())
    refined = functools.partial(_refined, network.module, dataset.label_space.num_classes, told)

    def features(index: np.ndarray) -> np.ndarray | None:
        return None if kept is None else np.stack([kept.features(n)[0] for n in index.tolist()])

    given = ((index, *arrays, features(index)) for index, *arrays in batches_by_size(dataset, missing, batch_size, "label"))
    ready = Prefetch(given, lambda batch: (batch[0], jax.device_put(batch, where)))
    with progress("refine", len(missing)) as advance, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        done = 0
        while done < len(missing):
            index, batch = ready.next()
            labels = np.asarray(refined(variables, key, *batch))
            own = len(set(index.tolist()))  # what fills a batch up repeats its last image
            list(pool.map(lambda n, label: write_png(paths[n], label, level=6), index[:own].tolist(), labels[:own]))
            done += own
            advance(own)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _refined(module, classes: int, options: tuple[tuple[str, Any], ...], variables, key, index, image, label, features):
    keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(index)
    return refine_labels(module, variables, keys, image, label, num_classes=classes, features=features, **dict(options)).label


def summarize(dataset: Dataset, place: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes labels.sha256, the picture and, last, pseudo.json, which is returned: shares of all pixels, lists by class.

    before, after: labelled at all. changed: labelled otherwise. dropped: no longer labelled. gained: not labelled before.
    """
    names, classes = pseudo.file_names(dataset), dataset.label_space.num_classes
    strips = shown(len(dataset))

    def one(index: int) -> tuple[dict[str, Any], str, Image.Image | None]:
        path = place / pseudo.LABELS / names[index]
        before, after = dataset.label(index), files.read_label(path)
        count = lambda label: np.bincount(label[label < classes], minlength=classes)
        known = before < classes, after < classes
        sums = {
            "pixels": before.size,
            "before": count(before),
            "after": count(after),
            "changed": int(np.sum(known[0] & known[1] & (before != after))),
            "dropped": int(np.sum(known[0] & ~known[1])),
            "gained": int(np.sum(~known[0] & known[1])),
            "unchanged_images": int((np.where(known[0], before, IGNORE) == after).all()),
        }
        picture = strip(dataset.image(index), before, after, dataset.label_space) if index in strips else None
        return sums, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {pseudo.LABELS}/{names[index]}\n", picture

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(one, range(len(dataset))))
    lines = "".join(line for _, line, _ in parts)
    total = {name: sum(part[name] for part, _, _ in parts) for name in parts[0][0]}
    space, pixels = dataset.label_space, int(total.pop("pixels"))
    summary: dict[str, Any] = {
        "label_space": space.name,
        "classes": list(space.classes),
        "palette": [list(colour) for colour in space.palette],
        "images": len(dataset),
        "unchanged_images": total.pop("unchanged_images"),
        "pixels": pixels,
        "rule": "sam",
        **{name: (np.asarray(value) / pixels).tolist() for name, value in total.items()},
        "settings": dict(settings),
        "labels_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    summary["sha256"] = sealed.digest(summary)
    write(place / pseudo.SUMS, lines.encode())
    joined([picture for *_, picture in parts if picture is not None]).save(place / PICTURE)
    write(place / pseudo.SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


def strip(image: np.ndarray, before: np.ndarray, after: np.ndarray, space: Any) -> Image.Image:
    """Image, label before and after in the palette's colours (unlabelled pixels black), side by side and small."""
    size = _WIDE, max(1, round(image.shape[0] * _WIDE / image.shape[1]))
    parts = [Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)]
    parts += [Image.fromarray(space.colorize(label)).resize(size, Image.Resampling.NEAREST) for label in (before, after)]
    row = Image.new("RGB", (3 * _WIDE, size[1]))
    for column, part in enumerate(parts):
        row.paste(part, (column * _WIDE, 0))
    return row


def joined(strips: list[Image.Image]) -> Image.Image:
    """The strips under each other."""
    whole, top = Image.new("RGB", (3 * _WIDE, sum(part.height + 4 for part in strips)), "white"), 0
    for part in strips:
        whole.paste(part, (0, top))
        top += part.height + 4
    return whole


def text(summary: Mapping[str, Any]) -> str:
    """What a person reads at the end: a row a class that there is, then the whole."""
    rows = [f"{'class':16} {'before':>8} {'after':>8}   % of all pixels"]
    for name, before, after in zip(summary["classes"], summary["before"], summary["after"], strict=True):
        if before or after:
            rows.append(f"{name:16} {100 * before:8.2f} {100 * after:8.2f}")
    shares = ", ".join(f"{100 * summary[name]:.2f} % {name}" for name in ("changed", "dropped", "gained"))
    return "\n".join([*rows, f"{shares}; {summary['unchanged_images']} of {summary['images']} images unchanged"])
