"""Masks of images by SAM, MobileSAM or EfficientSAM: of what points or boxes show, or of everything that a grid of points finds.

segjax segment --model=sam_vit_b_01ec64.pth --input=photo.jpg --output=masks --points="320,200;350,240,0" --points=600,100
segjax segment --model=facebook_sam-vit-base/ --input=photos/ --output=masks --everything

Each --points (x,y or x,y,0 for what is not meant, several with ;) and each --box is one object; as many of both are taken in pairs. x goes
right, y down, in pixels of the image. Writes NAME_mask000.png (0 and 255, the image's size) for each mask, NAME_overlay.jpg and NAME.json.
"""

import argparse
import colorsys
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from segjax.data.files import read_image, read_image_size
from segjax.errors import ConfigError
from segjax.verbs import everything, folder, networks, segment_prompts, startup
from segjax.verbs.arguments import images_in
from segjax.verbs.progress import progress
from segjax.verbs.segmenter import Segmenter

MULTIMASK = ("best", "all", "single")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a segjax file, or a public checkpoint (file or folder)")
    parser.add_argument("--input", required=True, metavar="FILE|DIR", help="an image or a folder of images")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for masks, overlays and JSON")
    parser.add_argument("--points", action="append", default=[], metavar="X,Y[,LABEL];...", help="one object; label 1 (default) or 0")
    parser.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="one object")
    parser.add_argument("--everything", action="store_true", help="masks of all that a grid of points finds")
    parser.add_argument(
        "--multimask",
        choices=MULTIMASK,
        default="best",
        help="of the three masks of a prompt the one of best predicted IoU, or all; or its single one",
    )
    parser.add_argument("--dtype", default="", help="compute dtype: float32 or bfloat16 (default: the file's, else float32)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of the network that no file tells")
    group = parser.add_argument_group("with --everything")
    for field in dataclasses.fields(everything.Settings):
        flag = f"--{field.name.replace('_', '-')}"
        group.add_argument(flag, type=type(field.default), default=field.default, metavar="N", help=f"default {field.default:g}")


def run(args: argparse.Namespace) -> int:
    """Segments every image. ConfigError: prompts that make no sense. DataError: unreadable images. WeightsError: not such a network."""
    objects = segment_prompts.parse(args.points, args.box)
    if args.everything == bool(objects):
        raise ConfigError("give prompts with --points or --box, or --everything: exactly one of the two ways")
    settings = _settings(args)
    images = images_in(args.input, "--input")
    for path in images.values():
        segment_prompts.check_inside(objects, read_image_size(path), path)
    folder.writable(args.output)
    startup.one_process("segment", args)
    startup.begin(args, image_by_image=True)
    told = networks.settings(args.set) | ({"dtype": args.dtype} if args.dtype else {})
    network = networks.load(args.model, settings=told)
    devices = jax.device_count() if args.everything or len(images) >= jax.device_count() else 1
    segmenter = Segmenter(network, devices=devices)
    segment_prompts.check_slots(objects, segmenter.module)
    work = _everything(segmenter, settings) if args.everything else _prompted(segmenter, objects, args.multimask)
    names = list(images)
    with work.steps(images) as advance:
        for start in range(0, len(names), work.together):
            group = names[start : start + work.together]
            pictures = [read_image(images[name]) for name in group]
            for name, image, (masks, about) in zip(group, pictures, work.segment(pictures, advance), strict=True):
                _write(args.output, name, images[name], image, masks, about, objects)
    print(f"{len(images)} images in {args.output}")
    return 0


@dataclasses.dataclass(frozen=True)
class _Work:
    """steps: images -> a progress bar of the right length. segment: (images, `together` of them at most, advance) -> for each its masks
    bool [N,H,W] and what is known of each mask."""

    steps: Callable[[dict[str, pathlib.Path]], contextlib.AbstractContextManager]
    segment: Callable[[list[np.ndarray], Callable[[int], None]], Iterator[tuple[np.ndarray, list[dict[str, Any]]]]]
    together: int = 1


def _everything(segmenter: Segmenter, settings: everything.Settings) -> _Work:
    def segment(images, advance):
        for image in images:
            found, masks = everything.generate(segmenter, image, settings, advance)
            known = zip(found.iou, found.stability, found.points, strict=True)
            yield masks, [{**_scores(iou, stability), "point": [round(float(x), 2) for x in point]} for iou, stability, point in known]

    total = lambda images: sum(everything.batches(read_image_size(path), settings) for path in images.values())
    return _Work(lambda images: progress("segment (batches of points)", total(images)), segment)


def _prompted(segmenter: Segmenter, objects: list[segment_prompts.Prompt], multimask: str) -> _Work:
    points, labels = segment_prompts.packed(objects)

    def segment(images, advance):
        for view in segmenter.views(images):
            logits, iou = segmenter.decode(view, points, labels, multimask=multimask != "single")
            kept = [(n, m) for n in range(len(iou)) for m in (range(iou.shape[1]) if multimask == "all" else [int(iou[n].argmax())])]
            chosen = np.asarray(logits)[tuple(np.array(kept).T)]
            stability, _, _ = segmenter.measure(view, chosen, offset=1.0)
            known = zip(kept, stability, strict=True)
            about = [{"prompt": objects[n].text, **_scores(iou[n, m], score)} for (n, m), score in known]
            advance(1)
            yield segmenter.binary(view, chosen), about

    return _Work(lambda images: progress("segment", len(images)), segment, segmenter.mesh.size)


def _scores(iou: Any, stability: Any) -> dict[str, float]:
    return {"predicted_iou": round(float(iou), 5), "stability": round(float(stability), 5)}


def _settings(args: argparse.Namespace) -> everything.Settings:
    settings = everything.Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(everything.Settings)})
    for name in ("points_per_side", "points_per_batch"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(settings, name)}: expected 1 or more")
    if settings.crop_layers < 0 or settings.min_region_area < 0 or not 0 <= settings.crop_overlap < 1:
        raise ConfigError("--crop-layers and --min-region-area are 0 or more, --crop-overlap lies in 0..1")
    return settings


def _write(output: pathlib.Path, name: str, path: pathlib.Path, image: np.ndarray, masks: np.ndarray, about: list, objects: list) -> None:
    place = output / name
    place.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for n, (mask, known) in enumerate(zip(masks, about, strict=True)):
        file = f"{place.name}_mask{n:03d}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(place.with_name(file))
        y, x = np.nonzero(mask)
        box = [int(x.min()), int(y.min()), int(x.max()), int(y.max())] if len(x) else [0, 0, 0, 0]
        rows.append({"file": file, "area": len(x), "box": box, **known})
    overlay(image, masks, objects).save(place.with_name(f"{place.name}_overlay.jpg"), quality=90)
    size = {"width": image.shape[1], "height": image.shape[0]}
    place.with_name(f"{place.name}.json").write_text(json.dumps({"image": path.name, **size, "masks": rows}, indent=1) + "\n")


def overlay(image: np.ndarray, masks: np.ndarray, objects: list[segment_prompts.Prompt]) -> Image.Image:
    """The image under its masks, each in a colour of its own, large ones below small ones; and the prompts."""
    mixed = image.astype(np.float32)
    for n in sorted(range(len(masks)), key=lambda n: -masks[n].sum()):
        colour = np.array(colorsys.hsv_to_rgb(n * 0.618034 % 1, 0.8, 1.0)) * 255  # the golden ratio keeps neighbours apart
        mixed[masks[n]] = 0.5 * image[masks[n]] + 0.5 * colour
    picture = Image.fromarray(mixed.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    radius = max(2, max(image.shape[:2]) // 200)
    for item in objects:
        if item.box is not None:
            draw.rectangle(item.box, outline=(0, 255, 0), width=max(1, radius // 2))
        for x, y, label in item.points:
            fill = (0, 255, 0) if label else (255, 0, 0)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=(255, 255, 255))
    return picture
