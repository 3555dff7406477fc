"""What fills a folder with images: from the values of a generate stage and its prompts to files, resumable, over every device."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from segjax.errors import ConfigError, Preempted, WeightsError
from segjax.generation import diffusion, directory, prompts, schedulers, tokens
from segjax.runtime.log import say
from segjax.runtime.mesh import make_mesh, replicated
from segjax.runtime.preemption import Preemption
from segjax.verbs import build, generated, startup
from segjax.verbs.progress import progress


def fill(spec: Mapping[str, Any], texts: list[prompts.Prompt], place: pathlib.Path, where: str) -> int:
    """Fills the folder `place` (`segjax.verbs.generated`) with spec["count"] images, one a prompt where that is None; how many there are.

    where: what precedes a key of `spec` in a message. ConfigError, WeightsError: impossible values, the model; Preempted.
    """
    count = len(texts) if spec["count"] is None else spec["count"]
    unit = spec["unit"]
    job = _job(spec, where)
    settings = {**job.settings, "prompts_sha256": generated.digest([list(text) for text in texts])}
    output = generated.Generated(place, settings)
    row = lambda index: _row(index, texts, job.settings)
    units = [u for u in range(math.ceil(count / unit)) if not output.done.issuperset(_images(u, unit, count))]
    mine = units[jax.process_index() :: jax.process_count()]
    there = sum(index in output.done for index in range(count))
    if there:
        say(f"{place}: {there} of {count} images are there already")
    stopped = None
    try:
        if units:
            output.begin(count)
            dispatches = math.ceil(len(units) / jax.process_count() / job.at_once)
            with Preemption() as preemption, progress("generate", sum(len(_images(u, unit, count)) for u in mine)) as advance:
                save = lambda unit, images: _save(output, unit, images, count, row, advance)
                stopped = generated.work(mine, dispatches, job.start(texts), job.at_once, save, preemption)
    finally:
        startup.barrier("generate: written")
        total = output.join() if jax.process_index() == 0 else 0
    if stopped:
        raise Preempted(f"{place}: {stopped} after {total} of {count} images: start the same command again to go on")
    output.end()
    return total


class _Job(NamedTuple):
    """settings: of every image. at_once: units of one dispatch. start: prompts -> unit numbers -> what fetches their images."""

    settings: dict[str, Any]
    at_once: int
    start: Callable[[list[prompts.Prompt]], Callable[[Sequence[int]], Callable[[], np.ndarray]]]


def _job(spec: Mapping[str, Any], where: str) -> _Job:
    """Everything that the values and the model say. ConfigError: impossible values. WeightsError: the model."""
    mesh = make_mesh(spec["devices"], devices=jax.local_devices())
    dtype = compute_dtype(spec["dtype"], mesh, f"{where}dtype")
    model = directory.read(spec["model"], variant=spec["variant"], dtype=dtype)
    size = model.size if spec["size"] is None else tuple(spec["size"])[::-1]
    if any(side % model.vae.module.stride for side in size):
        raise ConfigError(f"{where}size={size[0]}x{size[1]}: expected multiples of {model.vae.module.stride}")
    solver = spec["sampler"] or schedulers.name_of(model.scheduler)
    sampler = schedulers.make(model.scheduler, spec["steps"], solver)
    settings = {key: spec[key] for key in ("seed", "steps", "guidance")} | {"sampler": solver, "width": size[0], "height": size[1]}
    platform = mesh.devices.flat[0].platform
    settings |= {"negative_prompt": spec["negative"], "dtype": dtype.name, "unit": spec["unit"], "platform": platform}
    settings["weights_sha256"] = model.sha256()
    capacity = math.ceil((spec["batch"] or 1) / (mesh.size * spec["unit"]))

    def start(texts: list[prompts.Prompt]):
        *ids, negative = token_ids(model, [*(text.text for text in texts), spec["negative"]])
        variables = jax.device_put(diffusion.with_kernels_in(model.variables, dtype), replicated(mesh))
        make = diffusion.generator(model.networks, sampler, mesh, size=size, guidance=spec["guidance"])
        parts = dict(seed=spec["seed"], unit=spec["unit"], capacity=capacity)
        return diffusion.dispatcher(make, mesh, variables, np.stack(ids), negative, **parts)

    return _Job(settings, mesh.size * capacity, start)


def compute_dtype(name: str, mesh: jax.sharding.Mesh, where: str) -> Any:
    """The type of that name; "auto": float32 on a CPU, else bfloat16. ConfigError on one that no network computes in."""
    auto = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    return build.compute_dtype(auto if name == "auto" else name, where)


def token_ids(model: directory.StableDiffusion, texts: list[str], *, whole: str = "") -> np.ndarray:
    """Token ids int32 [texts, context]. A text with too many loses its end, with a printed line.

    whole: what precedes such a text in the ConfigError that it is instead. WeightsError: a tokenizer that is not this model's.
    """
    text = model.text.module
    tokenizer = tokens.Tokenizer(model.tokenizer, context=text.context_length)
    ids = tokenizer(texts)
    if ids.max() >= text.vocab_size:
        raise WeightsError(
            f"{model.tokenizer}: gives the id {ids.max()}, the text encoder knows {text.vocab_size}: another model's tokenizer"
        )
    long = [(found, size) for found, size in zip(texts, tokenizer.lengths(texts), strict=True) if size > text.context_length]
    if long:
        found, size = long[0]
        told = f"{found[:60]!r}{'...' * (len(found) > 60)} has {size} tokens with begin and end, the model reads {text.context_length}"
        if whole:
            raise ConfigError(f"{whole}{told}: shorten it")
        say(f"{len(long)} prompts are cut: {told}")
    return ids


def _save(output: generated.Generated, units: Sequence[int], images: np.ndarray, count: int, row, advance) -> None:
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
