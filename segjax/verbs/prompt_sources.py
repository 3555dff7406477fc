"""Where prompts come from: templates and files, which are read, and language models, here or elsewhere, which are asked."""

import hashlib
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax

from segjax.errors import DataError, WeightsError
from segjax.generation import prompts
from segjax.generation.captions import Answer, Collected, Request
from segjax.generation.endpoint import Endpoint
from segjax.generation.language import Sampling, Writer, bucket_of
from segjax.generation.language_tokens import LanguageTokenizer
from segjax.nets.llama import Llama
from segjax.verbs import build, networks, prompt_values, zero_shot
from segjax.weights import safetensors_io, sources

ANSWERS = ("instruction", "system", "classes", "plan", "captions", "temperature", "top_p", "top_k", "max_tokens", "seed")
"""Values on which the answers of any language model depend."""
_BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")
_TAIL = 1 << 20

STREET = tuple(
    f"{kind} of a street with a {{}}, {when}"
    for kind, when in itertools.product(
        ("A photo", "A picture", "A snapshot"),
        ("at noon in summer", "at night in the rain", "in the morning fog", "at dusk in autumn", "on a snowy day", "after a storm"),
    )
)
"""`templates="street"`: CLOUDS' forms of words with times of day, weathers and seasons."""


class Asker(Protocol):
    """A language model that answers requests, `at_once` of them at a time."""

    at_once: int

    def ask(self, requests: Sequence[Request]) -> list[Answer]: ...


def asking(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the answers of a model or endpoint depend on. WeightsError: no such model."""
    found = {key: spec[key] for key in ANSWERS} | {"classes": list(prompt_values.names(spec))}
    if spec["endpoint"]:
        return {**found, **{key: spec[key] for key in ("endpoint", "name", "send")}}
    return {
        **found,
        "model": fingerprint(spec["model"], spec["tokenizer"]),
        "dtype": dtype(spec),
        "unit": spec["unit"],
        "platform": jax.default_backend(),
    }


def fingerprint(model: str, tokenizer: str = "") -> dict[str, str]:
    """What tells a model from another without reading it whole: of each weights file its size and the sha256 of its last MiB, of each
    small file beside the weights (and in the tokenizer's folder) the sha256. WeightsError: no weights there.
    """
    weights = sources.files(model)
    beside = {file.name: file for place in (weights[0].parent, pathlib.Path(tokenizer or weights[0].parent)) for file in place.glob("*")}
    found = {name: safetensors_io.sha256(file) for name, file in beside.items() if name in _BESIDE and file.is_file()}
    for file in weights:
        with open(file, "rb") as content:
            content.seek(max(file.stat().st_size - _TAIL, 0))
            found[file.name] = f"{file.stat().st_size} {hashlib.sha256(content.read()).hexdigest()}"
    return dict(sorted(found.items()))


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """For the manifest: which source, and the sha256 of all that was read from disk."""
    if spec["endpoint"]:
        return {"source": "endpoint", "endpoint": spec["endpoint"], "name": spec["name"]}
    if spec["model"]:
        return {"source": "model", "model": spec["model"], "weights_sha256": networks.hashes(spec["model"])}
    kind = "file" if spec["file"] else "templates"
    path = pathlib.Path(spec[kind])
    return {"source": kind, kind: spec[kind]} | ({"sha256": safetensors_io.sha256(path)} if path.is_file() else {})


def read(spec: Mapping[str, Any]) -> list[tuple[Request, Answer]]:
    """The prompts of a file, or of templates, each of which is filled with every class before the next one begins.

    DataError, ConfigError: no such file, no prompt in it, a template without its one {}.
    """
    if spec["file"]:
        found = prompts.read(spec["file"])
    else:
        texts = STREET if spec["templates"] == prompt_values.STREET else zero_shot.templates(spec["templates"])
        found = [prompts.Prompt(text.replace("{}", name), name) for text in texts for name in prompt_values.names(spec)]
    return [(Request(number, "", each.category), Answer(each.text, False)) for number, each in enumerate(found)]


def open_asker(spec: Mapping[str, Any], texts: Sequence[str], mesh: jax.sharding.Mesh) -> Asker:
    """The model (on `mesh`) or endpoint. texts: all that it may be asked. Errors as of what it opens."""
    return _Remote(spec) if spec["endpoint"] else _Local(spec, texts, mesh)


class _Remote:
    """Behind an endpoint. Each request has a seed of its own, where the endpoint takes one."""

    at_once = 1

    def __init__(self, spec: Mapping[str, Any]):
        key = os.environ.get(spec["key"], "") if spec["key"] else ""
        limits = {"timeout": float(spec["timeout"]), "attempts": spec["attempts"]}
        self._endpoint = Endpoint(spec["endpoint"], spec["name"], key=key, fields=spec["send"], **limits)
        self._spec = spec

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        fields = {key: self._spec[key] for key in ("temperature", "top_p", "max_tokens")} | {"top_k": self._spec["top_k"] or None}
        ask = lambda each: self._endpoint.ask(each.text, self._spec["system"], seed=self._spec["seed"] + each.number, **fields)
        return [ask(each) for each in requests]


class _Local:
    """On this machine's devices; request n is index n of the seed."""

    def __init__(self, spec: Mapping[str, Any], texts: Sequence[str], mesh: jax.sharding.Mesh):
        network = networks.load(spec["model"], settings={"dtype": dtype(spec)})
        net = network.module
        if not isinstance(net, Llama):
            raise WeightsError(f"{spec['model']}: is a {type(net).__name__}, expected a causal language model (Llama)")
        place = spec["tokenizer"] or sources.local(spec["model"])[0]
        self._tokenizer = LanguageTokenizer(place)
        self._ids = {text: self._tokenizer.encode(text, spec["system"]) for text in texts}
        if (most := max(max(ids) for ids in self._ids.values())) >= net.vocab_size:
            raise WeightsError(f"{place}: gives the id {most}, the model knows {net.vocab_size}: another model's tokenizer")
        sampling = Sampling(spec["temperature"], spec["top_k"], spec["top_p"])
        stop = [token for token in self._tokenizer.stop if token < net.vocab_size]
        options = {"new_tokens": spec["max_tokens"], "sampling": sampling, "stop": stop, "unit": spec["unit"]}
        self._writer = Writer(net, network.variables, mesh, **options)
        longest = max(map(len, self._ids.values()))
        self._writer.check_room(longest)
        self._seed, self._bucket, self.at_once = spec["seed"], bucket_of(longest), self._writer.rows

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        prompts = [self._ids[each.text] for each in requests]
        texts = self._writer(prompts, [each.number for each in requests], seed=self._seed, bucket=self._bucket)
        return [Answer(self._tokenizer.decode(text.tokens), not text.ended) for text in texts]


def dtype(spec: Mapping[str, Any]) -> str:
    """The type that a model here computes in."""
    if spec["dtype"] != "auto":
        return build.compute_dtype(spec["dtype"], "dtype").name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def enough(found: Collected, spec: Mapping[str, Any], requests: int) -> None:
    """DataError: fewer prompts than wanted, with what to do about it."""
    count = len(found.prompts)
    if count and (spec["count"] is None or count >= spec["count"]):
        return
    dropped = ", ".join(f"{number} {reason}" for reason, number in found.dropped.items() if number) or "none"
    if requests:
        way = "raise requests, temperature or max_tokens, or lower count; what was answered is not asked again"
        raise DataError(f"{count} prompts of {spec['count']} in {requests} requests (dropped: {dropped}): {way}")
    raise DataError(
        f"{spec['file'] or spec['templates']}: {count} prompts, expected {spec['count'] or 'one at least'} (dropped: {dropped})"
    )
