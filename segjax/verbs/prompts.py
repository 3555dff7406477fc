"""Prompts for `segjax generate`: from templates, a file, a language model here or behind an OpenAI-compatible endpoint.

segjax prompts --model=Llama-2-7b-chat-hf/ --output=prompts                                    100 captions of streets, as CLOUDS has
segjax prompts --endpoint=http://localhost:8000/v1 --name=llama --count=500 --output=prompts   key: the environment's OPENAI_API_KEY
segjax prompts --model=DIR --plan=each --classes=synthia16 --output=prompts                    each request about one class
segjax prompts --templates=street --classes=cityscapes19 --output=prompts                      or a FILE of lines with {} for the class
segjax prompts --file=mine.txt --output=prompts                                                cleaned, each once

Leaves OUTPUT/prompts.jsonl ({"prompt": ..., "class": ...} a line) and manifest.json (hash of the model or endpoint and name, instruction,
seed, sampling, counts). Numbers, bullets, quotes and small talk are stripped from answers; empty, too long and repeated captions go; the
first N of a longer list are the list of N. Every answer is kept in answers-*.jsonl at once: what was answered is never asked again.
A model writes the same whatever the number of devices; --unit and --dtype do change it. {number}, {classes} and {class} in --instruction
stand for the captions of a request, all classes, and with --plan=each the class of the request.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from segjax.errors import SegjaxError
from segjax.generation import captions, prompts
from segjax.runtime import mesh as meshes
from segjax.runtime import workdir
from segjax.runtime.log import say
from segjax.verbs import build, folder, prompt_sources, prompt_values, stages, startup, train
from segjax.verbs.prompt_answers import Answers, gather
from segjax.weights import safetensors_io


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    default = prompt_values.DEFAULTS
    parser.add_argument("--model", default="", metavar="DIR", help="a language model: Hugging Face's folder of a Llama, or its name there")
    parser.add_argument("--endpoint", default="", metavar="URL", help="an OpenAI-compatible API, e.g. https://api.openai.com/v1")
    parser.add_argument("--templates", default="", metavar="FILE|street", help="a text a line, {} for the class; street: those built in")
    parser.add_argument("--file", default="", metavar="FILE", help="prompts, one a line, or .jsonl as `generate` reads")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--count", type=int, help="prompts (default: 100 of a model; all of templates or a file)")
    parser.add_argument("--classes", default=default["classes"], metavar="SPACE|FILE", help="a label space, or a file with a class a line")
    parser.add_argument(
        "--plan", choices=captions.PLANS, default=default["plan"], help="what a request is about: all classes, or each in turn"
    )
    parser.add_argument("--instruction", default=default["instruction"], metavar="TEXT|@FILE", help="what a model is asked")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    parser.add_argument("--captions", type=int, default=default["captions"], help="captions that a request asks for")
    parser.add_argument("--requests", type=int, help="give up after so many (default: three times what should do)")
    parser.add_argument("--temperature", type=float, default=default["temperature"], help="0: the likeliest token, always")
    parser.add_argument("--top-p", type=float, default=default["top_p"])
    parser.add_argument("--top-k", type=int, default=default["top_k"], help="0: all")
    parser.add_argument("--max-tokens", type=int, help="of an answer (default: 48 a caption)")
    parser.add_argument("--seed", type=int, default=default["seed"])
    parser.add_argument("--min-words", type=int, help="of a prompt (default: 3 of a model's, else 1)")
    parser.add_argument("--max-words", type=int, default=default["max_words"])
    parser.add_argument("--name", default="", help="of the endpoint's model")
    parser.add_argument("--key", default=default["key"], metavar="VARIABLE", help="environment variable that holds the endpoint's key")
    parser.add_argument("--send", action="append", default=[], metavar="FIELD=VALUE", help="more fields of a request; FIELD=None omits one")
    parser.add_argument("--timeout", type=float, default=default["timeout"], help="seconds an answer of an endpoint may take")
    parser.add_argument("--attempts", type=int, default=default["attempts"], help="of each request to an endpoint")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="default: where the model lies")
    parser.add_argument("--dtype", default=default["dtype"], help="float32, bfloat16, float16; auto: float32 on a CPU, else bfloat16")
    parser.add_argument("--unit", type=int, default=default["unit"], help="answers that a device writes at once")
    parser.add_argument("--devices", type=int, default=-1, help="how many (default: all)")
    parser.add_argument("--fsdp", type=int, default=1, help="devices over which the model's parameters are split")
    train.add_on_change(parser)


def run(args: argparse.Namespace) -> int:
    """Makes the prompts. ConfigError, DataError, WeightsError: wrong flags, too few prompts, no such model. Preempted: stopped."""
    startup.begin(args)
    spec = prompt_values.of_flags(args)
    kept = {key: value for key, value in spec.items() if key not in prompt_values.NEUTRAL}
    done = _make(spec, args.output, {"stage": "", **kept, "inputs": _inputs(spec)}, "--", on_change=args.on_change)
    say(f"{done['prompts']} prompts in {args.output / prompt_values.PROMPTS}")
    return 0


def check_stage(config, name: str) -> None:
    """ConfigError when a stage's values cannot be. Reads no model."""
    prompt_values.of_stage(config, name, {})


def run_stage(config, name: str, place: pathlib.Path, places: Mapping[str, pathlib.Path], on_change: str) -> dict[str, Any]:
    """Makes the prompts of one stage in the folder `place`; returns what its done.json holds. A finished stage is left alone."""
    spec = prompt_values.of_stage(config, name, places)
    inputs = _inputs(spec)
    if read := stages.read_by_text(build.plain(config.stages[name])):
        inputs["stages"] = folder.stage_inputs(read, places)
    return _make(spec, place, folder.settings(config, name, inputs), f"config.stages.{name}.", on_change=on_change)


def _inputs(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the prompts are made from besides the values."""
    return {"asking" if prompt_values.is_asked(spec) else "read": folder.digest(_origin(spec))}


def _origin(spec: Mapping[str, Any]) -> dict[str, Any]:
    return prompt_sources.asking(spec) if prompt_values.is_asked(spec) else prompt_sources.identity(spec)


def _make(spec: Mapping[str, Any], place: pathlib.Path, settings: Mapping[str, Any], where: str, *, on_change: str) -> dict[str, Any]:
    """prompts.jsonl, manifest.json and, last, done.json, which is returned; of a finished folder nothing but that."""
    done = folder.read_done(place)
    startup.barrier("looked for done.json")
    if done is not None and done["digest"] == folder.digest(settings):
        say(f"{place}: finished before with the same settings and inputs, nothing to do")
        return done
    mesh = build.call(meshes.make_mesh, spec["mesh"], f"{where}mesh")
    folder.prepare(place, settings, mesh, on_change=on_change)
    begun = time.monotonic()
    with workdir.claim(place):
        if jax.process_index() == 0 or spec["model"]:  # a model here needs the devices of every process
            found, about = _found(spec, place, mesh)
            if jax.process_index() == 0:
                hashes = _write(place, found.prompts, {**prompt_sources.identity(spec), **about})
                done = {"stage": settings["stage"], "digest": folder.digest(settings), "product": prompt_values.PROMPTS, "scores": {}}
                done |= {"prompts": len(found.prompts), **hashes, "seconds": round(time.monotonic() - begun, 1)}
                folder.write_json(place / folder.DONE, done)
        startup.barrier("wrote done.json")
    return folder.read_done(place) or {}


def _found(spec: Mapping[str, Any], place: pathlib.Path, mesh: jax.sharding.Mesh) -> tuple[captions.Collected, dict[str, Any]]:
    """The prompts, and for the manifest how they were made. DataError: too few."""
    about: dict[str, Any] = {key: spec[key] for key in ("classes", "min_words", "max_words")}
    requests = 0
    if prompt_values.is_asked(spec):
        found, requests = gather(spec, Answers(place, prompt_sources.asking(spec)), mesh)
        about |= {**{key: spec[key] for key in prompt_sources.ANSWERS}, "requests": requests}
        if spec["model"]:
            about |= {"dtype": prompt_sources.dtype(spec), "unit": spec["unit"], "platform": jax.default_backend()}
    else:
        found = captions.collect(prompt_sources.read(spec), prompt_values.limits(spec), spec["count"])
    prompt_sources.enough(found, spec, requests)
    return found, {**about, "count": len(found.prompts), "dropped": found.dropped}


def _write(place: pathlib.Path, found: list[prompts.Prompt], about: dict[str, Any]) -> dict[str, str]:
    """Writes the prompts and what is known about them; returns the hash of the prompts."""
    rows = [{"prompt": prompt.text} | ({"class": prompt.category} if prompt.category else {}) for prompt in found]
    file = place / prompt_values.PROMPTS
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise SegjaxError(f"{file}: cannot be written ({error.strerror}): free space, and the same command goes on") from error
    hashes = {"prompts_sha256": safetensors_io.sha256(file)}
    folder.write_json(place / prompt_values.MANIFEST, {**about, **hashes})
    return hashes
