"""Prompts to images with Stable Diffusion, over every device, resumable.

segjax generate --model=stable-diffusion-v1-4 --prompts=prompts.txt --count=2975 --output=generated

Image j takes prompt j modulo the number of prompts. The folder gets im_00000j_pNN.png and manifest.jsonl (image, prompt, class, seed,
index, steps, guidance, sampler, size, hash of the weights). Stopped (SIGTERM: exit code 75) or killed, the same command goes on, on any
number of devices and with any --batch: the images are the same bytes as those of an unbroken run on this kind of device. --unit and
--dtype do change them. The safety checker of the directory is not run.
"""

import argparse
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax.errors import ConfigError, Preempted, WeightsError
from segjax.generation import diffusion, directory, prompts, schedulers, tokens
from segjax.runtime.log import say
from segjax.runtime.mesh import make_mesh, replicated
from segjax.runtime.preemption import Preemption
from segjax.verbs import build, generated, startup
from segjax.verbs.arguments import parse_size
from segjax.verbs.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a Stable Diffusion 1.x or 2.x directory in diffusers' layout")
    parser.add_argument("--prompts", required=True, metavar="FILE", help='a prompt a line, or .jsonl with {"prompt": ..., "class": ...}')
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for the images and manifest.jsonl")
    parser.add_argument("--count", type=int, help="images (default: one a prompt); a larger one later adds to the folder")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5, help="of the text; 1 or less: none")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    parser.add_argument("--sampler", default="", help=f"{', '.join(schedulers.SAMPLERS)} (default: the directory's own)")
    parser.add_argument("--size", default="", metavar="WxH", help="in pixels (default: the size that the model was made for)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="images a dispatch, over all devices (default: one unit a device)")
    parser.add_argument("--unit", type=int, default=1, help="images that a device computes at once")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16; auto: float32 on a CPU, else bfloat16")
    parser.add_argument("--variant", default="", help="which weights files to take, e.g. fp16 (default: the plain ones)")
    parser.add_argument("--devices", type=int, default=-1, help="how many of this process's devices (default: all)")


def run(args: argparse.Namespace) -> int:
    """Fills the folder. ConfigError, DataError, WeightsError: wrong flags, prompts, model. Preempted: stopped by a signal."""
    startup.begin()
    texts = prompts.read(args.prompts)
    count = len(texts) if args.count is None else args.count
    job = _job(args)
    settings = {**job.settings, "prompts_sha256": generated.digest([list(text) for text in texts])}
    output = generated.Generated(args.output, settings)
    row = lambda index: _row(index, texts, job.settings)
    units = [u for u in range(math.ceil(count / args.unit)) if not output.done.issuperset(_images(u, args.unit, count))]
    mine = units[jax.process_index() :: jax.process_count()]
    there = sum(index in output.done for index in range(count))
    if there:
        say(f"{args.output}: {there} of {count} images are there already")
    try:
        dispatches = math.ceil(len(units) / jax.process_count() / job.at_once)
        with Preemption() as preemption, progress("generate", sum(len(_images(u, args.unit, count)) for u in mine)) as advance:
            save = lambda unit, images: _save(output, unit, images, count, row, advance)
            stopped = generated.work(mine, dispatches, job.start(texts), job.at_once, save, preemption) if dispatches else None
    finally:
        startup.barrier("generate: written")
        total = output.join() if jax.process_index() == 0 else 0
    if stopped:
        raise Preempted(f"{args.output}: {stopped} after {total} of {count} images: start the same command again to go on")
    say(f"{total} images in {args.output}")
    return 0


class _Job(NamedTuple):
    """settings: of every image. at_once: units of one dispatch. start: prompts -> unit numbers -> what fetches their images."""

    settings: dict[str, Any]
    at_once: int
    start: Callable[[list[prompts.Prompt]], Callable[[Sequence[int]], Callable[[], np.ndarray]]]


def _job(args: argparse.Namespace) -> _Job:
    """Everything that the flags and the model say. ConfigError: impossible flags. WeightsError: the model."""
    for flag, value, least in (("count", args.count, 1), ("batch", args.batch, 1), ("unit", args.unit, 1), ("seed", args.seed, 0)):
        if value is not None and not least <= value < 2**31:
            raise ConfigError(f"--{flag}={value}: expected {least} or more, below 2^31")
    if not math.isfinite(args.guidance):
        raise ConfigError(f"--guidance={args.guidance}: expected a number, e.g. 7.5")
    mesh = make_mesh(args.devices, devices=jax.local_devices())
    platform = mesh.devices.flat[0].platform
    name = args.dtype if args.dtype != "auto" else "float32" if platform == "cpu" else "bfloat16"
    dtype = build.compute_dtype(name, "--dtype")
    model = directory.read(args.model, variant=args.variant, dtype=dtype)
    size = parse_size(args.size) or model.size
    if any(side % model.vae.module.stride for side in size):
        raise ConfigError(f"--size={size[0]}x{size[1]}: expected multiples of {model.vae.module.stride}")
    solver = args.sampler or schedulers.name_of(model.scheduler)
    sampler = schedulers.make(model.scheduler, args.steps, solver)
    settings = {"seed": args.seed, "steps": args.steps, "guidance": args.guidance, "sampler": solver, "width": size[0], "height": size[1]}
    settings |= {"negative_prompt": args.negative, "dtype": dtype.name, "unit": args.unit, "platform": platform}
    settings["weights_sha256"] = model.sha256()
    capacity = math.ceil((args.batch or 1) / (mesh.size * args.unit))

    def start(texts: list[prompts.Prompt]):
        *ids, negative = _ids(model, [*(text.text for text in texts), args.negative])
        variables = jax.device_put(diffusion.with_kernels_in(model.variables, dtype), replicated(mesh))
        make = diffusion.generator(model.networks, sampler, mesh, size=size, guidance=args.guidance)
        parts = dict(seed=args.seed, unit=args.unit, capacity=capacity)
        return diffusion.dispatcher(make, mesh, variables, np.stack(ids), negative, **parts)

    return _Job(settings, mesh.size * capacity, start)


def _ids(model: directory.StableDiffusion, texts: list[str]) -> np.ndarray:
    """Token ids int32 [texts, context]. WeightsError: a tokenizer that is not this model's."""
    text = model.text.module
    ids = tokens.Tokenizer(model.tokenizer, context=text.context_length)(texts)
    if ids.max() >= text.vocab_size:
        raise WeightsError(
            f"{model.tokenizer}: gives the id {ids.max()}, the text encoder knows {text.vocab_size}: another model's tokenizer"
        )
    return ids


def _save(output: generated.Generated, units: list[int], images: np.ndarray, count: int, row, advance) -> None:
    for unit, several in zip(units, images, strict=True):
        numbers = _images(unit, len(several), count)
        for index, image in zip(numbers, several, strict=False):  # the last unit may reach beyond the count
            output.save(image, row(index))
        advance(len(numbers))


def _images(unit: int, size: int, count: int) -> range:
    """The images of a unit, below count."""
    return range(unit * size, min((unit + 1) * size, count))


def _row(index: int, texts: list[prompts.Prompt], settings: dict[str, Any]) -> dict[str, Any]:
    number = index % len(texts)
    prompt = texts[number]
    name = f"im_{index:06d}_p{number:02d}.png"
    return {"image": name, "prompt": prompt.text, "class": prompt.category, "index": index, **settings}
