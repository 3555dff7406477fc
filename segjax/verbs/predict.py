"""Label PNGs and overlays of a file or a folder of photographs, at their own sizes.

--ids=trainId writes the label space's own ids, labelId what the Cityscapes evaluation server wants, color the palette (RGB). A pixel
without an answer is 255 (labelId: 0, unlabelled). Names are the photographs' with .png, and a Cityscapes frame's
CITY_SEQUENCE_FRAME_leftImg8bit becomes CITY_SEQUENCE_FRAME_pred_labelIds: the server pairs by what begins with the frame and takes one
PNG each, so use a fresh folder for each kind of ids. Overlays are NAME_overlay.jpg. Logits are resized to the photograph before the
argmax (--upsample=prediction: after it).
"""

import argparse
import pathlib

import jax
import numpy as np
from PIL import Image

from segjax.data import encodings, evaluation, folders, label_spaces
from segjax.data.dataset import Dataset, Example
from segjax.data.files import read_image
from segjax.errors import ConfigError, DataError
from segjax.typing import IGNORE
from segjax.verbs import evaluate, folder, inference, startup
from segjax.verbs.arguments import parse_size
from segjax.verbs.score_files import CITYSCAPES_FRAME

IDS = {"trainId": "labelTrainIds", "labelId": "labelIds", "color": "color"}
"""What the PNGs hold, and how Cityscapes calls such a file."""


class OneFile(Dataset):
    """A single photograph as a data set."""

    labelled = False

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.root, self._path = path.parent, path

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"OneFile({self._path})"

    def _load(self, index: int) -> Example:
        return {"image": read_image(self._path), "name": self._path.name}


def add_arguments(parser: argparse.ArgumentParser):
    evaluate.add_network_arguments(parser)
    inference.add_arguments(parser)
    parser.add_argument("--input", required=True, type=pathlib.Path, metavar="PATH", help="a photograph or a folder of them")
    parser.add_argument("--output", type=pathlib.Path, metavar="DIR", help="default: predictions/ in the stage's folder")
    parser.add_argument("--ids", choices=tuple(IDS), default="trainId", help="what the PNGs hold")
    parser.add_argument(
        "--size", default="", metavar="WxH", help="resize photographs to this first, e.g. 1024x512; default: their own size"
    )
    parser.add_argument("--no-overlay", action="store_true", help="label PNGs only")


def run(args: argparse.Namespace) -> int:
    """Predicts every photograph. DataError: nothing found, a damaged file. ConfigError: ids that the label space lacks."""
    startup.one_process("predict", args)
    size, how = parse_size(args.size), inference.from_spec(inference.from_flags(args), "--")
    network = evaluate.load(args)
    encode = _encoder(args.ids, network.space)
    photographs = _photographs(args.input)
    output = args.output or network.place / "predictions"
    folder.writable(output)
    places = _places(photographs, output, args.ids)
    state = jax.device_put(network.state)
    table = np.concatenate([np.full(network.first, IGNORE, np.uint8), np.arange(network.space.num_classes, dtype=np.uint8)])
    align_corners = network.stage.model.align_corners
    for batch in evaluation.evaluation_batches(photographs, batch_size=1, size=size and (size[1], size[0])):
        static = {"align_corners": align_corners, "how": how, "canvas": batch["canvas"], "fitted": bool(size) and not batch["exact"]}
        label = inference.answer(network.stage.method.predict, state, batch["image"], batch["size"], **static)
        index, (height, width) = batch["index"][0], batch["size"][0]
        label = table[np.asarray(label)[0, :height, :width]]
        place = places[index]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(encode(label)).save(place)
        if not args.no_overlay:
            image = photographs.image(index) if size else batch["image"][0, :height, :width]
            mixed = (image * 0.5 + network.space.colorize(label) * 0.5).astype(np.uint8)
            Image.fromarray(mixed).save(place.with_name(f"{place.stem}_overlay.jpg"), quality=90)
        print(place, flush=True)
    return 0


def _photographs(path: pathlib.Path) -> "OneFile | folders.FolderDataset":
    """A file or every photograph in a folder as an unlabelled data set. DataError when there is none."""
    if path.is_file():
        return OneFile(path)
    if not path.is_dir():
        raise DataError(f"--input={path}: no such file or folder")
    return folders.FolderDataset(str(path))


def _places(photographs: "OneFile | folders.FolderDataset", output: pathlib.Path, ids: str) -> list[pathlib.Path]:
    """Each photograph's PNG. ConfigError when one would replace the photograph: told before the first is written."""
    names = [photographs.name(index) for index in range(len(photographs))]
    places = [output / png_name(name, ids) for name in names]
    for name, place in zip(names, places, strict=True):
        if place.exists() and place.samefile(photographs.root / name):
            raise ConfigError(f"--output={output}: {place} would replace the photograph itself; choose another folder")
    return places


def png_name(name: str, ids: str) -> str:
    """A photograph's relative name -> its PNG's: for a Cityscapes frame what cityscapesScripts finds, else the same with .png."""
    path = pathlib.PurePosixPath(name)
    frame = CITYSCAPES_FRAME.match(path.name)
    stem = f"{frame.group()}_pred_{IDS[ids]}" if frame and path.stem.endswith("_leftImg8bit") else path.stem
    return str(path.with_name(f"{stem}.png"))


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
