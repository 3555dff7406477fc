"""Prompts to images with Stable Diffusion, over every device, resumable.

segjax generate --model=stable-diffusion-v1-4 --prompts=prompts.txt --count=2975 --output=generated
segjax generate --model=personalized/step_1000 --plan=things --token=sks --count=2975 --output=generated      DATUM's prompts

Image j takes prompt j modulo the number of prompts. The folder gets im_00000j_pNN.png and manifest.jsonl (image, prompt, class, seed,
index, steps, guidance, sampler, size, hash of the weights). Stopped (SIGTERM: exit code 75) or killed, the same command goes on, on any
number of devices and with any --batch: the images are the same bytes as those of an unbroken run on this kind of device. --unit and
--dtype do change them. The safety checker of the directory is not run.
"""

import argparse
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from segjax.errors import ConfigError
from segjax.generation import directory, prompt_plans, schedulers
from segjax.runtime import workdir
from segjax.runtime.log import say
from segjax.runtime.mesh import make_mesh
from segjax.verbs import build, folder, generate_images, generate_values, generated, stages, startup
from segjax.weights import safetensors_io


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    default = generate_values.DEFAULTS
    parser.add_argument("--model", required=True, metavar="DIR", help="a Stable Diffusion 1.x or 2.x directory in diffusers' layout")
    parser.add_argument("--prompts", default="", metavar="FILE", help='a prompt a line, or .jsonl with {"prompt": ..., "class": ...}')
    parser.add_argument("--plan", default="", help=f"prompts of a personalized model: {', '.join(prompt_plans.PLANS)}")
    parser.add_argument("--token", default=default["token"], help="of --plan: the word that it was personalized with")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for the images and manifest.jsonl")
    parser.add_argument("--count", type=int, help="images (default: one a prompt); a larger one later adds to the folder")
    parser.add_argument("--steps", type=int, default=default["steps"])
    parser.add_argument("--guidance", type=float, default=default["guidance"], help="of the text; 1 or less: none")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    parser.add_argument("--sampler", default="", help=f"{', '.join(schedulers.SAMPLERS)} (default: the directory's own)")
    parser.add_argument("--size", default="", metavar="WxH", help="in pixels (default: the size that the model was made for)")
    parser.add_argument("--seed", type=int, default=default["seed"])
    parser.add_argument("--batch", type=int, help="images a dispatch, over all devices (default: one unit a device)")
    parser.add_argument("--unit", type=int, default=default["unit"], help="images that a device computes at once")
    parser.add_argument("--dtype", default=default["dtype"], help="float32, bfloat16, float16; auto: float32 on a CPU, else bfloat16")
    parser.add_argument("--variant", default="", help="which weights files to take, e.g. fp16 (default: the plain ones)")
    parser.add_argument("--devices", type=int, default=default["devices"], help="how many of this process's devices (default: all)")


def run(args: argparse.Namespace) -> int:
    """Fills the folder. ConfigError, DataError, WeightsError: wrong flags, prompts, model. Preempted: stopped by a signal."""
    startup.begin(args)
    spec = generate_values.of_flags(args)
    total = generate_images.fill(spec, generate_values.texts(spec), args.output, "--")
    say(f"{total} images in {args.output}")
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no model."""
    generate_values.of_stage(config, name, {})


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Fills the folder `place` of one stage; returns what its done.json holds. A finished stage is left alone.

    on_change "continue" takes a larger count alone: images of other settings do not belong into one set.
    """
    where = f"config.stages.{name}."
    spec = generate_values.of_stage(config, name, places)
    stages.refuse_unfilled(spec, where[:-1])
    texts = generate_values.texts(spec)
    inputs: dict[str, Any] = {"weights": directory.sha256(spec["model"], spec["variant"])}
    inputs["prompts"] = generated.digest([list(text) for text in texts])
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    kept = {key: value for key, value in folder.settings(config, name, inputs).items() if key not in generate_values.NEUTRAL}
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is not None and done["digest"] == folder.digest(kept):
        say(f"{place}: finished before with the same settings and inputs, nothing to do")
        return done
    folder.prepare(place, kept, make_mesh(spec["devices"], devices=jax.local_devices()), on_change=on_change)
    begun = time.monotonic()
    with workdir.claim(place):
        total = generate_images.fill(spec, texts, place, where)
        count = len(texts) if spec["count"] is None else spec["count"]
        if jax.process_index() == 0:
            if total > count:
                raise ConfigError(
                    f"{place}: holds {total} images, {where}count={count} is fewer: let the reader take them with prefix={count}"
                )
            done = {"stage": name, "digest": folder.digest(kept), "product": generated.MANIFEST, "scores": {}, "images": total}
            done |= {"manifest_sha256": safetensors_io.sha256(place / generated.MANIFEST), "seconds": round(time.monotonic() - begun, 1)}
            folder.write_json(place / folder.DONE, done)
        startup.barrier("wrote done.json")
    return folder.read_done(place) or {}
