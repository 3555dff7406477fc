"""`segjax embed` of a SAM: what its encoder makes of every image, kept for `segjax refine --features` and for training (`data.features`).

segjax embed --model=mobile_sam.pt --images=generated --output=features --flips

Each image becomes one file, float16 unless --keep=float32, as `data.features` describes; --flips keeps those of its mirror image, too,
which training with flips needs. 2 MB an image and view at 64 x 64 x 256. A run that was stopped goes on with the images that are missing.
"""

import argparse
import concurrent.futures
import functools
import io
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.data import features, folders, pseudo, sealed
from segjax.data.dataset import Dataset
from segjax.errors import ConfigError
from segjax.nets import label_refiner
from segjax.runtime import mesh as meshes
from segjax.runtime import workdir
from segjax.runtime.prefetch import Prefetch
from segjax.typing import Array
from segjax.verbs import folder, networks
from segjax.verbs.progress import progress
from segjax.verbs.pseudo_label_files import write

KINDS = ("float16", "float32")


def is_segmenter(network: networks.Network) -> bool:
    """Whether a network takes prompts: SAM, MobileSAM, EfficientSAM."""
    return hasattr(network.module, "decode") and hasattr(network.module, "stretch")


def run(args: argparse.Namespace, network: networks.Network) -> int:
    """Keeps the features of args.images below args.output. ConfigError: another run's folder, several processes. DataError: images."""
    if args.keep not in KINDS:
        raise ConfigError(f"--keep={args.keep}: expected {' or '.join(KINDS)}")
    if not args.images or args.texts or args.text or args.classes or args.dense:
        name = type(network.module).__name__
        raise ConfigError(f"--model: its network is a {name}, which has features of images alone: give --images, and no texts or classes")
    if jax.process_count() > 1:
        raise ConfigError(f"features are made in one process, and there are {jax.process_count()}: give each its own part of the images")
    dataset, place = folders.FolderDataset(args.images), pathlib.Path(args.output)
    settings = {"weights": networks.hashes(args.model), "images": repr(dataset), "dtype": args.keep, "flips": args.flips, "set": args.set}
    settings = json.loads(json.dumps({**settings, "layout": args.layout}))
    with workdir.claim(place):
        old = folder.read_json(place / folder.CONFIG)
        if old is not None and (found := folder.difference(old, settings)):
            raise ConfigError(
                f"{place} holds features made with other settings ({'; '.join(found)}): choose another --output, or delete it"
            )
        if old is not None and (place / features.SUMMARY).is_file():
            print(f"{place}: finished before with the same settings and inputs, nothing to do")
            return 0
        folder.write_json(place / folder.CONFIG, settings)
        made = make(dataset, network, place, batch_size=args.batch_size, flips=args.flips, dtype=args.keep)
        shape = features.read(place / features.FOLDER / features.file_name(dataset.name(0)), made).shape
        summary: dict[str, Any] = {**made, "weights": settings["weights"], "network": type(network.module).__name__}
        summary |= {"image_size": network.module.image_size, "images": len(dataset)}
        summary["sha256"] = sealed.digest(summary)
        write(place / features.SUMMARY, json.dumps(summary, indent=1).encode())
    print(f"features {args.keep}{list(shape)} of {len(dataset)} images -> {place / features.FOLDER}")
    return 0


def make(dataset: Dataset, network: networks.Network, place: pathlib.Path, *, batch_size: int, flips: bool, dtype: str) -> dict[str, Any]:
    """Writes the files that are missing; returns shape and type of each. Images go in batches of one size, whatever their order."""
    pseudo.file_names(dataset)  # refuses two images of one name
    paths = [place / features.FOLDER / features.file_name(dataset.name(index)) for index in range(len(dataset))]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    mesh = meshes.make_mesh(jax.device_count() if len(missing) >= jax.device_count() else 1)
    batch_size = -(-batch_size // mesh.size) * mesh.size
    variables = jax.device_put(network.variables, meshes.replicated(mesh))
    run, where = functools.partial(_views, network.module, flips, dtype), meshes.batch_sharding(mesh)
    ready = Prefetch(batches_by_size(dataset, missing, batch_size), lambda batch: (batch[0], jax.device_put(batch[1], where)))
    with progress("features", len(missing)) as advance, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        done = 0
        while done < len(missing):
            index, image = ready.next()
            found = np.asarray(run(variables, image))
            own = len(set(index.tolist()))  # what fills a batch up repeats its last image
            list(pool.map(lambda n, array: write(paths[n], _npy(array)), index[:own].tolist(), found[:own]))
            done += own
            advance(own)
    example = np.load(paths[0], mmap_mode="r")
    return {"shape": list(example.shape), "dtype": str(example.dtype)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _views(module: Any, flips: bool, dtype: str, variables: Any, image: Array) -> Array:
    found = [label_refiner.encode(module, variables, x) for x in ((image, image[:, :, ::-1]) if flips else (image,))]
    return jnp.stack(found, 1).astype(dtype)


def batches_by_size(dataset: Dataset, wanted: list[int], batch_size: int, *more: str):
    """(numbers int32 [B], images uint8 [B,H,W,3], and what else of the examples `more` names) of equal sizes, filled up with the last."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for index in wanted:
        sizes.setdefault(dataset.image_size(index), []).append(index)
    for group in sizes.values():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            examples = [dataset[index] for index in part]
            examples += examples[-1:] * (batch_size - len(part))
            part += part[-1:] * (batch_size - len(part))
            yield np.array(part, np.int32), *(np.stack([example[name] for example in examples]) for name in ("image", *more))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
