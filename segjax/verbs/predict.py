"""Label PNGs and overlays of a file or a folder of photographs, at their own sizes.

--ids=trainId writes the label space's own ids, labelId what the Cityscapes evaluation server wants, color the palette (RGB). 255 marks a
pixel without an answer. Names are the photographs' with .png; overlays are NAME_overlay.jpg.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax.data import encodings, folders, label_spaces, transforms
from segjax.errors import ConfigError, DataError
from segjax.ops import resize
from segjax.typing import IGNORE
from segjax.verbs import evaluate, folder
from segjax.verbs.arguments import parse_size

IDS = ("trainId", "labelId", "color")


def add_arguments(parser: argparse.ArgumentParser):
    evaluate.add_network_arguments(parser)
    parser.add_argument("--input", required=True, type=pathlib.Path, metavar="PATH", help="a photograph or a folder of them")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="default: predictions/ in the stage's folder")
    parser.add_argument("--ids", choices=IDS, default="trainId", help="what the PNGs hold")
    parser.add_argument(
        "--size", default="", metavar="WxH", help="resize photographs to this first, e.g. 1024x512; default: their own size"
    )
    parser.add_argument("--no-overlay", action="store_true", help="label PNGs only")


def run(args: argparse.Namespace) -> int:
    """Predicts every photograph. DataError: nothing found, a damaged file. ConfigError: ids that the label space lacks."""
    size = parse_size(args.size)
    network = evaluate.load(args)
    encode = _encoder(args.ids, network.space)
    images = _images(args.input)
    output = args.output or network.place / "predictions"
    folder.writable(output)
    answer = jax.jit(lambda state, image: jnp.argmax(network.stage.method.predict(state, (), image), -1).astype(jnp.uint8))
    state = jax.device_put(network.state)
    table = np.concatenate([np.full(network.first, IGNORE, np.uint8), np.arange(network.space.num_classes, dtype=np.uint8)])
    for name, image in images:
        fed = image if size is None else transforms.resize_image(image, (size[1], size[0]))
        label = answer(state, fed[None])
        label = table[np.asarray(resize.nearest(label, image.shape[:2])[0])]
        place = (output / name).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(encode(label)).save(place)
        if not args.no_overlay:
            mixed = (image * 0.5 + network.space.colorize(label) * 0.5).astype(np.uint8)
            Image.fromarray(mixed).save(place.with_name(f"{place.stem}_overlay.jpg"), quality=90)
        print(place, flush=True)
    return 0


def _images(path: pathlib.Path):
    """(relative name, uint8 [H,W,3]) of a file or of every photograph in a folder. DataError when there is none."""
    if path.is_file():
        return [(path.name, folders.read_image(path))]
    if not path.is_dir():
        raise DataError(f"--input={path}: no such file or folder")
    found = folders.FolderDataset(str(path))
    return ((example["name"], example["image"]) for example in (found[i] for i in range(len(found))))


def _encoder(ids: str, space: label_spaces.LabelSpace):
    """uint8 train ids [H,W] -> what the PNG holds."""
    if ids == "trainId":
        return lambda label: label
    if ids == "color":
        return space.colorize
    cityscapes = label_spaces.get("cityscapes19")
    if not set(space.classes) <= set(cityscapes.classes):
        raise ConfigError(f"--ids=labelId: {space.name} is no part of Cityscapes; use --ids=trainId or --ids=color")
    table = np.full(256, IGNORE, np.uint8)
    table[: space.num_classes] = label_spaces.mapping(space, cityscapes)
    return lambda label: encodings.encode_labelid(table[label])
