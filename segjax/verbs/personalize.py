"""Stable Diffusion personalized on one image (DreamBooth), for `generate` to draw a target domain that has no other image.

segjax personalize --model=stable-diffusion-v1-4 --image=target.png --output=personalized
segjax personalize --model=DIR --image=FILE --output=DIR --class-prompt="a photo of an urban scene"     with prior preservation

Trains the UNet and the text encoder (--no-train-text: not) on random crops of the image, with DATUM's values where a flag says nothing
else: short side 1,024, crops of the size that the model was made for, 1,000 steps of one crop, AdamW 5e-6, gradients clipped at 1 over both
networks. Every --export-every steps the whole directory is written to OUTPUT/step_N: diffusers and `segjax generate` load it. Stopped or
killed, the same command goes on from its last checkpoint, bit for bit. --class-prompt adds images that the model makes itself
(--class-count), or those of --class-images, so that it keeps what it knew of them. --lora-rank trains adapters and writes them merged.
--cache=N encodes the crops of the first N elements before the first step and then looks at those N again and again: N = steps x batch
changes nothing but the order of work, a smaller N sees fewer different windows, and the VAE leaves the step either way.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from segjax.errors import WeightsError
from segjax.generation import directory
from segjax.methods import dreambooth
from segjax.runtime import loop
from segjax.runtime.log import say
from segjax.verbs import build, folder, generate_images, generated, personalize_data, personalize_shapes, stages, startup, train, variables
from segjax.verbs import personalize_values as values
from segjax.verbs import personalize_work as work
from segjax.weights import safetensors_io


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    default, add = values.DEFAULTS, parser.add_argument
    add("--model", required=True, metavar="DIR", help="a Stable Diffusion 1.x or 2.x directory in diffusers' layout")
    add("--image", required=True, metavar="FILE", help="the one image")
    add("--output", required=True, type=pathlib.Path, metavar="DIR", help="receives step_N/ and checkpoints/")
    add("--prompt", default=default["prompt"], help="with a rare word for what the image shows (default: %(default)s)")
    add("--class-prompt", default="", help="prior preservation, e.g. 'a photo of an urban scene'")
    add("--class-images", default="", metavar="DIR", help="of --class-prompt (default: made by the model)")
    add("--class-count", type=int, default=default["class_count"], help="how many of them to make")
    add("--prior-weight", type=float, default=default["prior_weight"])
    add("--short-side", type=int, default=default["short_side"], help="resize the image to this; 0: leave it")
    add("--crop", type=int, help="side of a crop (default: the size that the model was made for)")
    add("--steps", type=int, default=default["steps"])
    add("--batch-size", type=int, default=default["batch_size"], help="crops a step, over all devices")
    add("--accumulate", type=int, default=default["accumulate"], help="parts that a batch is worked off in")
    add("--export-every", type=int, default=default["export_every"], help="steps between two directories")
    add("--train-text", action=argparse.BooleanOptionalAction, default=default["train_text"], help="train the text encoder too")
    add("--lora-rank", type=int, default=default["lora_rank"], help="train adapters of this rank; 0: the whole networks")
    add("--lora-alpha", type=float, help="default: the rank")
    add("--cache", type=int, default=default["cache"], help="encode the crops of so many elements before training; 0: in every step")
    add("--lr", type=float, default=values.OPTIMIZER["lr"])
    add("--remat", action="store_true", help="compute activations again for the gradient, for less memory")
    add("--dtype", default=default["dtype"], help="of computation: float32, bfloat16; auto: float32 on a CPU, else bfloat16")
    add("--variant", default="", help="which weights files to take, e.g. non_ema (default: the plain ones)")
    add("--seed", type=int, default=default["seed"])
    add("--devices", type=int, default=-1, help="how many (default: as many as divide the batch)")
    add("--fsdp", type=int, default=1, help="devices over which parameters and optimizer are split")
    add("--checkpoint-every", type=int, default=default["checkpoint_every"])
    add("--log-every", type=int, default=default["log_every"])
    train.add_on_change(parser)


def run(args: argparse.Namespace) -> int:
    """Personalizes the model. ConfigError, DataError, WeightsError: wrong flags, image, model. Preempted: stopped after a save."""
    startup.begin(args)
    spec = values.of_flags(args)
    job = _Job(spec, "--")
    settings = json.loads(json.dumps({"stage": "", **spec, "inputs": job.inputs()}))
    done = job.finish(args.output, settings, on_change=args.on_change)
    say(f"{args.output / done['product']}: personalized in {done['steps']} steps")
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no model."""
    values.of_stage(config, name, {})


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Personalizes the model of one stage in the folder `place`; returns what its done.json holds. A finished stage is left alone."""
    where, spec = f"config.stages.{name}", values.of_stage(config, name, places)
    stages.refuse_unfilled(spec, where)
    job = _Job(spec, f"{where}.")
    inputs = job.inputs()
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    return job.finish(place, folder.settings(config, name, inputs), on_change=on_change)


def step_shapes(config, name: str, mesh: jax.sharding.Mesh) -> personalize_shapes.Shapes:
    """The step of a stage by shapes alone, at Stable Diffusion 1.x's sizes: what `compile_step` takes to compile it for any mesh."""
    return personalize_shapes.shapes(values.of_stage(config, name, {}), mesh, f"config.stages.{name}.")


class _Job:
    """One personalization. The model is read when it is needed: a finished stage reads its files' hashes alone."""

    def __init__(self, spec: Mapping[str, Any], where: str):
        self.spec, self.where = spec, where

    def inputs(self) -> dict[str, Any]:
        """What the result is made from besides the values: hashes of the model, the image, and class images that were given."""
        found = {"weights": directory.sha256(self.spec["model"], self.spec["variant"])}
        pixels = personalize_data.target_image({**self.spec, "crop": 0}, self.where)
        found["image"] = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        if self.spec["class_images"]:
            files = personalize_data.class_files(self.spec["class_images"], self.where)
            found["class_images"] = generated.digest([safetensors_io.sha256(file) for file in files])
        return found

    def finish(self, place: pathlib.Path, settings: Mapping[str, Any], *, on_change: str) -> dict[str, Any]:
        """Trains in `place`, exports, and writes done.json, which is returned; of a finished folder nothing but that."""
        digest = folder.digest(settings)
        done = folder.read_done(place)
        startup.barrier("looked for done.json")
        if done is not None and done["digest"] == digest:
            say(f"{place}: finished before with the same settings and inputs, nothing to do")
            return done
        spec, begun = dict(self.spec), time.monotonic()
        mesh = work.make_mesh(spec, self.where)
        model = directory.read(
            spec["model"], variant=spec["variant"], dtype=generate_images.compute_dtype(spec["dtype"], mesh, f"{self.where}dtype")
        )
        spec["crop"] = spec["crop"] or min(model.size)
        method = work.method(spec, model.networks, model.scheduler, self.where)
        texts = {key: spec[key] for key in ("prompt", "class_prompt") if key == "prompt" or spec[key]}
        ids = [generate_images.token_ids(model, [text], whole=f"{values.named(self.where, key)}: ") for key, text in texts.items()]
        images = {dreambooth.STREAMS[0]: personalize_data.target_image(spec, self.where)[None]}
        folder.prepare(place, settings, mesh, on_change=on_change)
        if spec["class_prompt"]:
            images[dreambooth.STREAMS[1]] = personalize_data.class_images(spec, model, place, self.where)
        frozen: dict[str, Any] = {name: getattr(model, name).variables for name in work.frozen_names(spec)} | {"ids": np.concatenate(ids)}
        if spec["cache"]:
            frozen |= personalize_data.cached(spec, model.vae, images, mesh)
        else:
            frozen |= {"vae": model.vae.variables, **{f"{stream}_images": pixels for stream, pixels in images.items()}}
        exported = _Exports(place, model, work.lora_scale(spec))
        trained = [name for name in ("unet", "text") if name not in frozen]
        state = loop.train(
            method,
            batches=lambda start: work.batches(spec["batch_size"], start),
            steps=spec["steps"],
            workdir=place,
            mesh=mesh,
            seed=spec["seed"],
            frozen=frozen,
            initial_variables=lambda: {"params": {name: getattr(model, name).variables["params"] for name in trained}} if trained else None,
            evaluate=exported,
            evaluate_every=spec["export_every"],
            resumed=functools.partial(exported.again, spec["export_every"]),
            sharding_overrides=build.overrides(spec["sharding"], f"{self.where}sharding"),
            **{key: spec[key] for key in ("checkpoint_every", "keep", "log_every")},
        )
        step = int(state.step)
        exported(state, step)
        if jax.process_index() == 0:
            product = f"{exported.name(step)}/{directory.INDEX}"
            done = {"stage": settings["stage"], "digest": digest, "product": product, "scores": {}, "steps": step}
            done |= {"model_sha256": directory.sha256(place / exported.name(step)), "seconds": round(time.monotonic() - begun, 1)}
            folder.write_json(place / folder.DONE, done)
        startup.barrier("wrote done.json")
        done = folder.read_done(place)
        if done is None:
            raise WeightsError(f"{place}: done.json is not visible to this process: a folder that every process sees is needed")
        return done


class _Exports:
    """Writes PLACE/step_N, once a call of the verb, and says how long that took."""

    def __init__(self, place: pathlib.Path, model: directory.StableDiffusion, scale: float):
        self.place, self.model, self.scale = place, model, scale
        self.written: set[int] = set()

    def __call__(self, state: Any, step: int) -> dict[str, float]:
        begun = time.monotonic()
        if step not in self.written:
            params = variables.gather(state)["params"]
            if jax.process_index() == 0:
                work.export(self.model, params, self.scale, self.place / self.name(step))
            self.written.add(step)
        return {"export/seconds": time.monotonic() - begun}

    def again(self, every: int, state: Any, step: int) -> None:
        """The directory of a step that a run was killed after: it may be missing."""
        if step % every == 0:
            self(state, step)

    @staticmethod
    def name(step: int) -> str:
        return f"step_{step}"
