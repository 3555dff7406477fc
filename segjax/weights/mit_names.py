"""The modules of a MiT under the names of each public code: a table, and the rules that it makes.

NVlabs (also in DAFormer, HRDA and MIC), Hugging Face on disk (transformers 4 and 5), as transformers 5 holds it in memory, and
mmsegmentation from 0.20, which stacks query, key and value and writes the MLP as 1x1 convolutions.
"""

from collections.abc import Iterator
from typing import Any

from segjax.weights.engine import CONV, DENSE, IDENTITY, POINTWISE, Rule

STAGES = range(1, 5)
ARRAYS = {  # what a module holds: (collection, our name, their name, transform)
    "conv": (("params", "kernel", "weight", CONV), ("params", "bias", "bias", IDENTITY)),
    "dense": (("params", "kernel", "weight", DENSE), ("params", "bias", "bias", IDENTITY)),
    "pointwise": (("params", "kernel", "weight", POINTWISE), ("params", "bias", "bias", IDENTITY)),
    "norm": (("params", "scale", "weight", IDENTITY), ("params", "bias", "bias", IDENTITY)),
    "batch_norm": (
        ("params", "scale", "weight", IDENTITY),
        ("params", "bias", "bias", IDENTITY),
        ("batch_stats", "mean", "running_mean", IDENTITY),
        ("batch_stats", "var", "running_var", IDENTITY),
    ),
}
STYLES = ("nvlabs", "hf", "hf_memory", "mmseg")
_DISK, _MEMORY, _MM = "block.{n}.{{i}}.attention.", "stages.{n}.blocks.{{i}}.attention.", "layers.{n}.1.{{i}}."
_IN = _MM + "attn.attn.in_proj_"  # query above key and value
TABLE = {  # our module: (arrays, then a name for each style; {s} counts stages from 1, {n} from 0, two names are joined)
    "patch_embed{s}/proj": (
        "conv",
        "patch_embed{s}.proj",
        "patch_embeddings.{n}.proj",
        "stages.{n}.patch_embeddings.proj",
        "layers.{n}.0.projection",
    ),
    "patch_embed{s}/norm": (
        "norm",
        "patch_embed{s}.norm",
        "patch_embeddings.{n}.layer_norm",
        "stages.{n}.patch_embeddings.layer_norm",
        "layers.{n}.0.norm",
    ),
    "block{s}/norm1": (
        "norm",
        "block{s}.{{i}}.norm1",
        "block.{n}.{{i}}.layer_norm_1",
        "stages.{n}.blocks.{{i}}.layernorm_before",
        _MM + "norm1",
    ),
    "block{s}/norm2": (
        "norm",
        "block{s}.{{i}}.norm2",
        "block.{n}.{{i}}.layer_norm_2",
        "stages.{n}.blocks.{{i}}.layernorm_after",
        _MM + "norm2",
    ),
    "block{s}/attn/q": ("dense", "block{s}.{{i}}.attn.q", _DISK + "self.query", _MEMORY + "q_proj", (_IN, (0, 1, 3))),
    "block{s}/attn/kv": (
        "dense",
        "block{s}.{{i}}.attn.kv",
        (_DISK + "self.key", _DISK + "self.value"),
        (_MEMORY + "k_proj", _MEMORY + "v_proj"),
        (_IN, (1, 3, 3)),
    ),
    "block{s}/attn/sr": (
        "conv",
        "block{s}.{{i}}.attn.sr",
        _DISK + "self.sr",
        _MEMORY + "sequence_reduction.sequence_reduction",
        _MM + "attn.sr",
    ),
    "block{s}/attn/norm": (
        "norm",
        "block{s}.{{i}}.attn.norm",
        _DISK + "self.layer_norm",
        _MEMORY + "sequence_reduction.layer_norm",
        _MM + "attn.norm",
    ),
    "block{s}/attn/proj": ("dense", "block{s}.{{i}}.attn.proj", _DISK + "output.dense", _MEMORY + "o_proj", _MM + "attn.attn.out_proj"),
    "block{s}/mlp/fc1": (
        "dense",
        "block{s}.{{i}}.mlp.fc1",
        "block.{n}.{{i}}.mlp.dense1",
        "stages.{n}.blocks.{{i}}.mlp.fc1",
        _MM + "ffn.layers.0",
    ),
    "block{s}/mlp/dwconv": (
        "conv",
        "block{s}.{{i}}.mlp.dwconv.dwconv",
        "block.{n}.{{i}}.mlp.dwconv.dwconv",
        "stages.{n}.blocks.{{i}}.mlp.dwconv.dwconv",
        _MM + "ffn.layers.1",
    ),
    "block{s}/mlp/fc2": (
        "dense",
        "block{s}.{{i}}.mlp.fc2",
        "block.{n}.{{i}}.mlp.dense2",
        "stages.{n}.blocks.{{i}}.mlp.fc2",
        _MM + "ffn.layers.4",
    ),
    "norm{s}": ("norm", "norm{s}", "layer_norm.{n}", "stages.{n}.layer_norm", "layers.{n}.2"),
}


def module(kind: str, ours: str, theirs: str | tuple[Any, ...]) -> Iterator[Rule]:
    """Rules of every array of one module. theirs: its name without the last dot, a tuple of names that are joined, or (name, share)."""
    names: list[Any] = list(theirs) if isinstance(theirs, tuple) else [theirs]
    share: Any = None if isinstance(names[-1], str) else names.pop()
    join = -1 if len(names) > 1 else None
    for collection, our_name, their_name, transform in ARRAYS[kind]:
        keys = tuple(f"{name}{'' if name.endswith('_') else '.'}{their_name}" for name in names)
        yield Rule(f"{collection}/{ours}/{our_name}", keys[0] if join is None else keys, transform, join=join, share=share)


def rules(style: str, ours: str, theirs: str) -> tuple[Rule, ...]:
    """The encoder's rules in one of `STYLES`. ours: a prefix of the path, `backbone/`; theirs: of the key, `backbone.`."""
    result = []
    for place, (kind, *names) in TABLE.items():
        name = names[STYLES.index(style)]
        kind = "pointwise" if style == "mmseg" and "/mlp/fc" in place else kind  # 1x1 convolutions there
        for s in STAGES:
            fill = lambda text, s=s: theirs + text.format(s=s, n=s - 1)
            filled = fill(name) if isinstance(name, str) else tuple(fill(part) if isinstance(part, str) else part for part in name)
            result += module(kind, ours + place.format(s=s), filled)
    return tuple(result)


def key(place: str, style: str, s: int, i: int = 0) -> str:
    """The key of the weight of a module of stage `s`, and of its block `i`, where the style has one key for it."""
    return TABLE[place][1 + STYLES.index(style)].format(s=s, n=s - 1).format(i=i) + ".weight"
