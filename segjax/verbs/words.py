"""The words of a network that reads them (`nets.mask2former`: class_head="text", or ensemble), from the text tower of a CLIP.

A stage's `model.words` says {"clip": file or folder, "tokenizer": folder ("": where the CLIP lies), "classes", "templates"}
(`verbs.zero_shot`). A stage that starts from no earlier one embeds them before its first step; they then are in its weights
(batch_stats/words), so that whoever opens these needs no CLIP. How many words each class has (`model.synonyms`) follows from them.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from segjax.errors import ConfigError
from segjax.generation import tokens
from segjax.verbs import build, networks, variables, zero_shot
from segjax.weights import safetensors_io, sources

_AT_ONCE = 128


def inputs(stage: build.Stage) -> dict[str, Any]:
    """What the words are made from, for config.json and the stage's digest; {} for none. WeightsError: no such CLIP or tokenizer."""
    spec = stage.spec["model"].get("words")
    if not spec:
        return {}
    chosen, prompts = _texts(stage, spec)
    place = tokens.find(_tokenizer(spec))
    files = {name: safetensors_io.sha256(place / name) for form in tokens.FORMS for name in form if (place / name).is_file()}
    return {"clip": networks.hashes(spec["clip"]), "tokenizer": files, "synonyms": chosen.synonyms, "templates": prompts}


def put(stage: build.Stage, found: variables.Variables | None, *, anew: bool) -> variables.Variables | None:
    """The variables `found` that a stage starts from (None: fresh ones), with its words. anew: it starts from no earlier stage.

    ConfigError: a network without use for words, without words, or of vectors of another length. WeightsError: no CLIP, no tokenizer.
    """
    where, spec = f"config.stages.{stage.name}.model", stage.spec["model"].get("words")
    if not getattr(stage.model, "reads_words", False):
        if spec:
            raise ConfigError(f"{where}.words: the network reads none: set class_head='text' or ensemble=True, or leave words out")
        return found
    if spec and anew:
        found = _with_words(stage, found, spec, where)
    if found is None or not np.any(found["batch_stats"]["words"]):
        raise ConfigError(f"{where}.words: the network reads words and has none: name {', '.join(zero_shot.MODEL_KEYS)}, or other weights")
    return found


def _with_words(stage: build.Stage, found: variables.Variables | None, spec: Any, where: str) -> variables.Variables:
    from segjax.nets.mask2former import with_words  # both bring networks that no other stage needs, a tenth of the time of a start
    from segjax.verbs.embedder import Embedder

    network = networks.load(spec["clip"])
    embedder = Embedder(network, batch_size=_AT_ONCE, tokenizer=_tokenizer(spec), name=spec["clip"])
    vectors = zero_shot.vectors(*_texts(stage, spec), embedder.texts)
    if vectors.shape[1] != stage.model.embed_dim:
        told = f"has vectors of {vectors.shape[1]} numbers, and model.embed_dim={stage.model.embed_dim}"
        raise ConfigError(f"{where}.words.clip={spec['clip']}: {told}: name the backbone's CLIP")
    found = with_words(found or variables.drawn(stage), jnp.asarray(vectors))
    if "clip_logit_scale" in found["batch_stats"]:
        found["batch_stats"]["clip_logit_scale"] = np.asarray(network.variables["params"]["logit_scale"], np.float32)
    return found


def _texts(stage: build.Stage, spec: Any) -> tuple[zero_shot.Classes, tuple[str, ...]]:
    where = f"config.stages.{stage.name}.model.words"
    return zero_shot.of_model(spec, where), zero_shot.templates(spec["templates"], f"{where}.templates")


def _tokenizer(spec: Any) -> Any:
    return spec["tokenizer"] or sources.local(spec["clip"])[0]
