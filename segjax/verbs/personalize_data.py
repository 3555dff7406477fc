"""What a personalize stage reads: the one image, the images of its class, and the VAE's posteriors of crops made beforehand."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from segjax.data.files import read_image
from segjax.data.transforms import resize_image
from segjax.errors import DataError
from segjax.generation import directory
from segjax.generation.prompts import Prompt
from segjax.methods import dreambooth
from segjax.runtime import mesh as meshes
from segjax.runtime.log import say
from segjax.verbs import build, generate_images, generate_values
from segjax.verbs.arguments import images_in
from segjax.verbs.personalize_values import named

CLASS_IMAGES = "class_images"


def target_image(spec: Mapping[str, Any], where: str) -> np.ndarray:
    """The one image uint8 [H,W,3], its short side resized to spec["short_side"] (0: as it is), as DATUM's script reads it. DataError."""
    name = spec["image"]
    if isinstance(name, str):
        image = read_image(name)
    else:
        dataset = build.dataset(name, f"{where}image")
        if spec["index"] >= len(dataset):
            raise DataError(f"{where}index={spec['index']}: {dataset!r} has the images 0 to {len(dataset) - 1}")
        image, name = dataset.unlabelled()[spec["index"]]["image"], dataset.name(spec["index"])
    height, width = image.shape[:2]
    if spec["short_side"]:
        side = spec["short_side"]
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        image = resize_image(image, size)
    crop = spec["crop"]
    if min(image.shape[:2]) < crop:
        resized = f", {image.shape[1]}x{image.shape[0]} at short_side={spec['short_side']}" if spec["short_side"] else ""
        way_out = f"lower {named(where, 'crop')} or raise {named(where, 'short_side')}"
        raise DataError(f"{name} is {width}x{height}{resized}: smaller than the crop {crop}x{crop}: {way_out}")
    return image


def class_images(spec: Mapping[str, Any], model: directory.StableDiffusion, place: pathlib.Path, where: str) -> np.ndarray:
    """Images of the class uint8 [N,H,W,3]: those of spec["class_images"], else spec["class_count"] made by the model itself in `place`.

    DataError: of several sizes, or smaller than the crop. Preempted: stopped while they were made.
    """
    folder = pathlib.Path(spec["class_images"]) if spec["class_images"] else place / CLASS_IMAGES
    if not spec["class_images"]:
        size = None if spec["crop"] <= min(model.size) else (spec["crop"], spec["crop"])
        values = {"model": spec["model"], "count": spec["class_count"], "size": size}
        values |= {key: spec[key] for key in ("seed", "dtype", "variant")}
        made = generate_images.fill({**generate_values.DEFAULTS, **values}, [Prompt(spec["class_prompt"])], folder, where)
        say(f"{made} class images in {folder}")
    files = class_files(str(folder), where)
    images = [read_image(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape or min(image.shape[:2]) < spec["crop"]:
            told = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(f"{file} is {told}: expected class images of one size, {spec['crop']}x{spec['crop']} or larger")
    return np.stack(images)


def class_files(folder: str, where: str) -> list[pathlib.Path]:
    """The image files of a folder, by name. DataError: none."""
    return list(images_in(folder, named(where, "class_images")).values())


def cached(spec: Mapping[str, Any], vae: directory.Part, images: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """{"instance_moments", ...}: the posteriors of the first spec["cache"] elements' crops of every stream, on the host."""
    put = lambda value: meshes.replicate(value, mesh)
    variables, key = put(vae.variables), put(jax.random.key(spec["seed"]))
    count, found = math.ceil(spec["cache"] / mesh.size) * mesh.size, {}
    rows = meshes.batch_sharding(mesh)
    for stream, pixels in images.items():
        encode = lambda variables, pixels, key, elements, stream=stream: dreambooth.moments(
            vae.module, variables, pixels, dreambooth.stream_key(key, stream), elements, spec["crop"]
        )
        with jax.set_mesh(mesh):
            step = jax.jit(encode, out_shardings=meshes.replicated(mesh))
            pixels = put(pixels)
            parts = []
            for first in range(0, count, mesh.size):
                elements = np.arange(first, first + mesh.size, dtype=np.int32)
                elements = jax.make_array_from_callback(elements.shape, rows, lambda index, elements=elements: elements[index])
                parts.append(jax.device_get(step(variables, pixels, key, elements)))
        whole = {name: np.concatenate([part[name] for part in parts])[: spec["cache"]] for name in parts[0]}
        found[f"{stream}_moments"] = whole
    return found
