"""CLIP: images and texts to vectors, zero-shot class scores, class maps.

segjax embed --model=clip-vit-base-patch16/ --images=photos/ --output=out/
segjax embed --model=RN50.pt --tokenizer=clip-vit-base-patch32/ --images=photos/ --classes=cityscapes19 --output=out/ --dense
segjax embed --model=clip.safetensors --tokenizer=tokenizer/ --text="a rainy street" --output=out/

--model is a segjax file or any public checkpoint (a folder of a hub, OpenAI's and open_clip's files). Images are resized on the shorter
side and cut to the centre as in CLIP's training. OUTPUT/images.npz holds `vectors` [N,E] of length 1 and `names`, texts.npz `vectors` and
`texts`. With --classes, scores.csv holds each image's probabilities, and its best class is printed. --dense (with --classes) writes
OUTPUT/dense/NAME.png at the photograph's size, pixels being class numbers in the order of --classes: the whole photograph is stretched
to --dense-size, every location is compared with the classes (MaskCLIP), and the scores are resized before the largest is taken.
Several processes share every batch; the first one writes. A SAM in --model leaves its features of the images (`segmenter_features`).
"""

import argparse
import csv
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from segjax.data.files import read_image_size
from segjax.errors import ConfigError, DataError
from segjax.runtime.log import say
from segjax.verbs import folder, networks, segmenter_features, startup, zero_shot
from segjax.verbs.arguments import images_in, parse_size
from segjax.verbs.embedder import Embedder
from segjax.weights import sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax embed`."""
    parser.add_argument("--model", required=True, metavar="PATH", help="a CLIP: segjax file, public checkpoint file or folder")
    parser.add_argument("--layout", default="auto", help="of a public checkpoint that is not recognised")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the network: dtype=bfloat16, vision_heads=12, ..."
    )
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="folder of the tokenizer's files; default: where the model lies")
    parser.add_argument("--images", default="", metavar="FILE|DIR", help="photographs")
    parser.add_argument("--texts", default="", metavar="FILE", help="a text a line")
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="one text; may be given several times")
    parser.add_argument(
        "--classes", default="", metavar="SPACE|FILE", help="label space, cityscapes19_words, or a file: class and synonyms a line"
    )
    parser.add_argument("--templates", default="", metavar="vild|FILE", help="prompts: ViLD's 14, or a file, one a line, {} for the class")
    parser.add_argument("--dense", action="store_true", help="also a map of the classes for each image")
    parser.add_argument("--dense-size", default="", metavar="WxH", help="size of the images under --dense; default: the network's square")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--keep", default="float16", metavar="TYPE", help="of a SAM's features: float16 or float32")
    parser.add_argument("--flips", action="store_true", help="a SAM's features of the mirror images, too")


def run(args: argparse.Namespace) -> int:
    """Embeds what is given. ConfigError: a wrong option. DataError: no or damaged input. WeightsError: no CLIP or tokenizer."""
    texts = _texts(args)
    if not args.images and not texts:
        raise ConfigError("nothing to embed: give --images=DIR, --texts=FILE or --text=TEXT")
    if args.dense and not (args.classes and args.images):
        raise ConfigError("--dense needs --images and --classes")
    if args.classes and not args.images:
        raise ConfigError("--classes scores images: give --images=DIR")
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size={args.batch_size}: expected 1 or more")
    dense_size = parse_size(args.dense_size, "--dense-size")
    images = images_in(args.images, "--images") if args.images else {}
    chosen = zero_shot.classes(args.classes) if args.classes else None
    prompts = zero_shot.templates(args.templates)
    output = pathlib.Path(args.output)
    folder.writable(output)
    startup.begin(args, image_by_image=True)
    network = networks.load(args.model, layout=args.layout, settings=networks.settings(args.set))
    if segmenter_features.is_segmenter(network):
        return segmenter_features.run(args, network)
    embedder = Embedder(network, batch_size=args.batch_size, tokenizer=args.tokenizer or sources.local(args.model)[0], name=args.model)
    size = embedder.dense_size(dense_size) if args.dense else None
    words = zero_shot.vectors(chosen, prompts, embedder.texts) if chosen else None
    if texts:
        _write_vectors(output / "texts.npz", embedder.texts(texts), texts=texts)
    if images:
        vectors = embedder.images(list(images.values()))
        _write_vectors(output / "images.npz", vectors, names=list(images))
        if chosen is not None and words is not None:
            logits = embedder.scale * zero_shot.best_synonyms(vectors @ words.T, chosen)
            _write_scores(output / "scores.csv", list(images), chosen.names, zero_shot.probabilities(logits))
            if size is not None:
                _write_dense(output / "dense", embedder, images, size, words, chosen)
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    """What --texts and --text say. DataError: no such file, nothing in it."""
    if not args.texts:
        return list(args.text)
    path = pathlib.Path(args.texts)
    if not path.is_file():
        raise DataError(f"--texts={args.texts}: no such file")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise DataError(f"--texts={args.texts}: no text in it: expected one a line")
    return [*lines, *args.text]


def _write_vectors(path: pathlib.Path, vectors: np.ndarray, **of: Sequence[str]) -> None:
    """Vectors [N,E] and, under one name, what each of them is of. Of several processes the first writes, here and below."""
    if jax.process_index() == 0:
        arrays: dict[str, Any] = {"vectors": vectors, **{name: np.array(items) for name, items in of.items()}}
        np.savez(path, **arrays)
    say(f"{len(vectors)} {path.stem} -> {path}")


def _write_scores(path: pathlib.Path, names: Sequence[str], classes: Sequence[str], scores: np.ndarray) -> None:
    """The table of probabilities [N,K], and each image's best class on stdout."""
    if jax.process_index():
        return
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "class", *classes])
        for name, row in zip(names, scores, strict=True):
            best = classes[int(row.argmax())]
            writer.writerow([name, best, *(f"{score:.6f}" for score in row)])
            print(f"{name}\t{best}\t{row.max():.3f}")


def _write_dense(
    place: pathlib.Path, embedder: Embedder, images: dict, size: tuple[int, int], words: np.ndarray, chosen: zero_shot.Classes
):
    """A label PNG for each image. size: (height, width) at which the network sees them."""
    names = {path: name for name, path in images.items()}
    for path, similarity in embedder.dense(list(names), size, words):
        if jax.process_index():  # it goes along: every process computes
            continue
        scores = zero_shot.best_synonyms(similarity, chosen)
        target = place / f"{names[path]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(class_map(scores, read_image_size(path))).save(target)
    say(f"{len(names)} class maps -> {place}")


def class_map(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scores float32 [h,w,K] -> the best class uint8 of every pixel of `size` = (height, width), scores resized bilinearly, one class at a
    time: at no moment are there K maps of full size."""
    best, label = None, np.zeros(size, np.uint8)
    for index in range(scores.shape[-1]):
        plane = Image.fromarray(np.ascontiguousarray(scores[..., index], np.float32))
        score = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        if best is None:
            best = score.copy()
            continue
        better = score > best
        label[better] = index
        np.maximum(best, score, out=best)
    return label
