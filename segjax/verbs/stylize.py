"""Source images in the look of target images: their low-frequency amplitudes, the source's own content (FDA).

Every source image is paired with one target image, in turn (or drawn by --seed), both are resized with PIL's bicubic filter to --size
(default: the source's own size), and `segjax.ops.fourier.amplitude_transfer` works on float values 0..255 in batches on the device. The
result is clipped, rounded half up and written as PNG under the source's relative name: OUTPUT/NAME.png, or OUTPUT/beta0.05/NAME.png for
each of several betas, or, with --bands, OUTPUT/NAME.png with one of the betas drawn for each image. Labels stay valid: nothing moves.
Several processes share the images out; a picture depends on its place in the folder and on --seed, not on how many there are.

Source: FDA_source_to_target_np in YanchaoYang/FDA utils/__init__.py and its demo (--variant=centred --beta=0.01 is that demo).
"""

import argparse
import collections
import concurrent.futures
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from segjax.data.files import read_image
from segjax.errors import ConfigError
from segjax.ops import fourier
from segjax.runtime.log import say
from segjax.verbs import startup
from segjax.verbs.arguments import images_in, parse_size
from segjax.verbs.progress import progress


class Job(NamedTuple):
    """One source image, its target, its name under the output folder (without suffix), and its number among all the sources."""

    source: pathlib.Path
    target: pathlib.Path
    name: str
    number: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `segjax stylize`."""
    parser.add_argument("--source", required=True, metavar="FILE|DIR", help="images that keep their content")
    parser.add_argument("--target", required=True, metavar="FILE|DIR", help="images that give their look")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the PNGs")
    parser.add_argument("--beta", default="0.01", help="share of low frequencies to swap, 0..0.5; several: 0.01,0.05,0.09")
    parser.add_argument("--bands", action="store_true", help="draw one of the betas for each image instead of writing every one")
    parser.add_argument("--size", default="", metavar="WxH", help="size of the result, e.g. 1024x512 (default: each source's own)")
    parser.add_argument("--variant", choices=("centred", "corner"), default="centred", help="the authors' demo, or their training code")
    parser.add_argument("--order", choices=("cycle", "random"), default="cycle", help="which target a source gets")
    parser.add_argument("--seed", type=int, default=0, help="for --order=random and --bands")
    parser.add_argument("--batch-size", type=int, default=8)


def run(args: argparse.Namespace) -> int:
    """Writes the pictures. ConfigError for a wrong option, DataError for images that are missing, damaged or share a name."""
    betas, size = parse_betas(args.beta), parse_size(args.size)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size={args.batch_size}: expected 1 or more")
    jobs = plan(images_in(args.source, "--source"), images_in(args.target, "--target"), order=args.order, seed=args.seed)
    output = pathlib.Path(args.output)
    folders = [output] if args.bands or len(betas) == 1 else [output / f"beta{beta:g}" for beta in betas]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output={output}: cannot be made ({error.strerror}): choose a folder that you may write") from None
    startup.begin(args)
    mine = jobs[jax.process_index() :: jax.process_count()]
    stylizers = [_stylizer((beta,), args.variant) for beta in betas] if len(folders) > 1 else [_stylizer(betas, args.variant)]
    try:
        stylize(mine, stylizers, folders, size=size, batch_size=min(args.batch_size, len(mine)), seed=args.seed)
    finally:
        startup.barrier("stylize: written")
    say(f"{len(jobs) * len(folders)} images in {output}")
    return 0


def stylize(jobs: list[Job], stylizers: list[Callable], folders: list[pathlib.Path], *, size, batch_size: int, seed: int) -> None:
    """Runs every stylizer over all jobs: the next batch is decoded and the last one encoded while the device works."""
    key = jax.random.key(seed)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, progress("stylize", len(jobs)) as advance:
        written: list[concurrent.futures.Future] = []
        for batch, numbers, source, target in _batches(jobs, pool, size, batch_size):
            for stylizer, folder in zip(stylizers, folders, strict=True):
                result = np.asarray(stylizer(source, target, key, numbers))
                for future in written:
                    future.result()
                written = [pool.submit(_write, folder / f"{job.name}.png", image) for job, image in zip(batch, result, strict=False)]
            advance(len(batch))
        for future in written:
            future.result()


def plan(sources: dict[str, pathlib.Path], targets: dict[str, pathlib.Path], *, order: str = "cycle", seed: int = 0) -> list[Job]:
    """Pairs every source with a target: in turn, or drawn uniformly by `seed` (the i-th draw depends on seed and i alone)."""
    looks = list(targets.values())
    if order == "random":
        chosen = (looks[np.random.default_rng((seed, i)).integers(len(looks))] for i in itertools.count())
    else:
        chosen = itertools.cycle(looks)
    return [Job(path, look, name, i) for i, ((name, path), look) in enumerate(zip(sources.items(), chosen, strict=False))]


def parse_betas(text: str) -> tuple[float, ...]:
    """'0.01,0.05' -> (0.01, 0.05). ConfigError unless each lies in 0..0.5."""
    try:
        betas = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--beta={text}: expected numbers with commas, e.g. 0.01,0.05") from None
    if not all(0.0 <= beta <= 0.5 for beta in betas):
        raise ConfigError(f"--beta={text}: each must lie in 0..0.5 (the paper uses 0.01, 0.05 and 0.09)")
    return betas


@functools.partial(jax.jit, static_argnames=("betas", "variant"))
def _transfer(source, target, key, numbers, *, betas: tuple[float, ...], variant: fourier.Variant):
    """uint8 [B,H,W,3] twice -> uint8. Float values 0..255, clipped, rounded half up (not to even, as jnp.round would).

    Of several betas each image draws one by the key and its number in `numbers`, int [B].
    """
    source, target = source.astype(jnp.float32), target.astype(jnp.float32)
    if len(betas) == 1:
        result = fourier.amplitude_transfer(source, target, betas[0], variant=variant)
    else:
        draw = lambda s, t, key: fourier.amplitude_transfer_bands(s[None], t[None], betas, key, variant=variant)[0]
        result = jax.vmap(draw)(source, target, jax.vmap(functools.partial(jax.random.fold_in, key))(numbers))
    return jnp.floor(jnp.clip(result, 0, 255) + 0.5).astype(jnp.uint8)


def _stylizer(betas: tuple[float, ...], variant: fourier.Variant) -> Callable:
    return functools.partial(_transfer, betas=betas, variant=variant)


def _batches(jobs: list[Job], pool, size, batch_size: int) -> Iterator[tuple[list[Job], np.ndarray, np.ndarray, np.ndarray]]:
    """(jobs, their numbers, sources, targets) of one image size in the order of the jobs.

    The arrays are filled up with the last image, so that a size compiles once.
    """
    batch: list[Job] = []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for job, pair in _loaded(jobs, pool, size, 2 * batch_size):
        if batch and (len(batch) == batch_size or pair[0].shape != pairs[0][0].shape):
            yield _filled(batch, pairs, batch_size)
            batch, pairs = [], []
        batch.append(job)
        pairs.append(pair)
    if batch:
        yield _filled(batch, pairs, batch_size)


def _filled(batch: list[Job], pairs: list[tuple[np.ndarray, np.ndarray]], batch_size: int):
    more = batch_size - len(batch)
    numbers, pairs = [job.number for job in batch] + [batch[-1].number] * more, pairs + [pairs[-1]] * more
    return batch, np.array(numbers), np.stack([source for source, _ in pairs]), np.stack([target for _, target in pairs])


def _loaded(jobs: list[Job], pool, size, ahead: int) -> Iterator[tuple[Job, tuple[np.ndarray, np.ndarray]]]:
    """Every job with its images, in order, `ahead` of them decoding in the background."""
    waiting: collections.deque = collections.deque()
    for job in jobs:
        waiting.append((job, pool.submit(_load, job, size)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _load(job: Job, size: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Source and target uint8 [H,W,3] of one size (width, height)."""
    images = [Image.fromarray(read_image(path)) for path in (job.source, job.target)]
    size = size or images[0].size
    source, target = (np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images)
    return source, target


def _write(path: pathlib.Path, image: np.ndarray) -> None:
    """Whole or not at all: a run that is killed leaves no half PNG under a final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(image).save(temporary, "PNG", compress_level=4)
    temporary.replace(path)
