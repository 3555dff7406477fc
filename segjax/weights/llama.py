"""Names of Llama at Hugging Face: LlamaForCausalLM, with an output embedding of its own or the input's, written twice or once."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import llama_config
from segjax.weights.engine import DENSE, Layout, Public, Rule

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OWN = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight", "model.norm.weight", _EMBEDDING)
_BUFFERS = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def _dense(names: str, part: str) -> tuple[Rule, Rule]:
    """The kernels and biases of a block's layers `names` (a regular expression), which stand in its `part`."""
    path, source = f"params/layers/({names})", f"model.layers.{{i}}.{part}.{{0}}"
    return Rule(f"{path}/kernel", f"{source}.weight", DENSE), Rule(f"{path}/bias", f"{source}.bias")


_RULES = (
    *_dense("[qkvo]_proj", "self_attn"),
    *_dense("(?:gate|up|down)_proj", "mlp"),
    Rule(r"params/layers/(\w+_layernorm)/scale", "model.layers.{i}.{0}.weight"),
    Rule("params/norm/scale", "model.norm.weight"),
    Rule("params/lm_head", _HEAD, DENSE),
)
PLAIN = Layout("llama_hf", (Rule("params/embed_tokens", _EMBEDDING), *_RULES), _BUFFERS)
TWICE = Layout("llama_hf_twice", (Rule("params/embed_tokens", _EMBEDDING, copies=(_HEAD,)), *_RULES), _BUFFERS)
"""Tied embeddings that the file holds under both names."""


def _form(keys: Iterable[str]) -> Layout:
    """`TWICE` where the arrays are at hand and equal; that fits own embeddings that happen to be equal as well."""
    if isinstance(keys, Mapping) and _HEAD in keys and _EMBEDDING in keys and np.array_equal(keys[_HEAD], keys[_EMBEDDING]):
        return TWICE
    return PLAIN


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    fields = llama_config.read(config)
    if fields["tied"] and _HEAD in source and _form(source) is not TWICE:
        raise WeightsError(
            f"config.json: tie_word_embeddings=true, but {_HEAD} differs from {_EMBEDDING}: set it to false to keep both as they are"
        )
    if not fields["tied"] and _HEAD not in source:
        raise WeightsError(f"config.json: tie_word_embeddings=false, but the weights have no {_HEAD}: are all shards there?")
    vocab_size, width = _shape(source, _EMBEDDING)
    return {
        "make": "segjax.nets.llama:Llama",
        "vocab_size": vocab_size,
        "width": width,
        "mlp_width": _shape(source, _OWN[1])[0],
        "layers": len({key.split(".")[2] for key in source if key.startswith("model.layers.")}),
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in source,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in source,
        **fields,
    }


def _shape(source: Mapping[str, np.ndarray], key: str) -> tuple[int, int]:
    shape = tuple(int(size) for size in source[key].shape)
    if len(shape) != 2:
        raise WeightsError(f"layout llama_hf: {key} {shape}: expected two axes")
    return shape


LLAMA_HF = Public(
    "llama_hf",
    recognises=lambda keys: set(_OWN) <= set(keys),
    layout=_form,
    model=_model,
    config=llama_config.write,
    forms=(PLAIN, TWICE),
)
