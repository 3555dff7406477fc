"""config.json of a LlamaForCausalLM, read strictly and written: what the shapes of its weights cannot tell.

Read in the words of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`); absent keys mean the defaults of its
LlamaConfig. Written in those of 4, which both read.
"""

from collections.abc import Mapping
from typing import Any

from segjax.errors import WeightsError

ROPE = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Kind of rotary embedding -> the numbers that it needs, and those that it may have."""
_ACTIVATIONS = ("silu", "gelu", "relu")
_NEUTRAL = ("original_max_position_embeddings", "rope_theta", "rope_type", "type")


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `segjax.nets.llama.Llama` that only a config knows. WeightsError: another model's, or a part that is not known here."""
    if not config:
        raise WeightsError(
            "layout llama_hf: no config.json beside the weights, and shapes do not tell the heads: copy it from the model's page"
        )
    kind = config.get("model_type", "llama")
    if kind != "llama":
        raise WeightsError(f"config.json: model_type={kind!r} has Llama's names but is another network: expected 'llama'")
    if config.get("quantization_config"):
        raise WeightsError("config.json: has a quantization_config: fetch the weights that are not quantized")
    heads = _whole(config, "num_attention_heads", 32)
    kv_heads = _whole(config, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise WeightsError(f"config.json: num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}")
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise WeightsError(f"config.json: hidden_act={activation!r}: expected {', '.join(_ACTIVATIONS)}")
    context = _whole(config, "max_position_embeddings", 2048)
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": _whole(config, "head_dim", _whole(config, "hidden_size", 4096) // heads),
        "context_length": context,
        "activation": activation,
        "epsilon": _number(config, "rms_norm_eps", 1e-6),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "bos_token_id": config.get("bos_token_id", 1),
        "eos_token_ids": end_tokens(config.get("eos_token_id", 2)),
        **_rope(config, context),
    }


def end_tokens(value: Any) -> tuple[int, ...]:
    """`eos_token_id` of a config (none, one or a list) as a tuple. WeightsError: something else."""
    values = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if not all(isinstance(each, int) for each in values):
        raise WeightsError(f"config.json: eos_token_id={value!r}: expected whole numbers")
    return tuple(values)


def write(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a network's fields."""
    names = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "context_length": "max_position_embeddings",
        "activation": "hidden_act",
        "epsilon": "rms_norm_eps",
        "tied": "tie_word_embeddings",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "rope_theta": "rope_theta",
        "bos_token_id": "bos_token_id",
    }
    if missing := [name for name in (*names, "rope", "rope_scaling", "eos_token_ids") if name not in spec]:
        raise WeightsError(f"the network has no {', '.join(missing)}, which config.json needs: it has {', '.join(sorted(spec))}")
    ends = list(spec["eos_token_ids"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: spec[ours] for ours, theirs in names.items()},
        "rope_scaling": None if spec["rope"] == "default" else {"rope_type": spec["rope"], **dict(spec["rope_scaling"])},
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": None,
    }


def _rope(config: Mapping[str, Any], context: int) -> dict[str, Any]:
    """The three fields of the rotary embedding, with every number that its kind looks at."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise WeightsError(f"config.json: rope_scaling={given!r}: expected an object with rope_type and its numbers")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE:
        raise WeightsError(f"config.json: rope_type={kind!r}: expected {', '.join(ROPE)}")
    needed, possible = ROPE[kind]
    numbers = {key: value for key, value in given.items() if key not in ("rope_type", "type", "rope_theta") and value is not None}
    if "original_max_position_embeddings" in possible:
        original = config.get("original_max_position_embeddings", numbers.get("original_max_position_embeddings", context))
        numbers["original_max_position_embeddings"] = original
        if kind == "yarn":
            numbers.setdefault("factor", context / original)
    if numbers.get("partial_rotary_factor", 1.0) == 1.0:
        numbers.pop("partial_rotary_factor", None)
    missing = [key for key in needed if key not in numbers]
    unknown = [key for key in numbers if key not in (*needed, *possible, *_NEUTRAL)]
    if missing or unknown or not all(isinstance(value, int | float) for value in numbers.values()):
        expected = ", ".join(needed) + (f" and perhaps {', '.join(possible)}" if possible else "") if needed else "nothing more"
        raise WeightsError(f"config.json: rope_type={kind!r} with {dict(numbers)}: expected {expected}, all numbers")
    kept = tuple(sorted((key, value) for key, value in numbers.items() if key in (*needed, *possible)))
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    return {"rope": kind, "rope_theta": _number({"rope_theta": theta}, "rope_theta", theta), "rope_scaling": kept}


def _whole(config: Mapping[str, Any], key: str, default: int) -> int:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or value < 1:
        raise WeightsError(f"config.json: {key}={value!r}: expected a whole number, 1 or more")
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise WeightsError(f"config.json: {key}={value!r}: expected a positive number")
    return float(value)
