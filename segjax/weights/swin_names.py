"""The modules of a Swin backbone under the names of each public code: a table, the rules that it makes, and what shapes tell of the sizes.

detectron2's (facebookresearch/Mask2Former and the original Swin), Hugging Face's on disk, and as transformers 5 holds it in memory.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.ops.attention_with_bias import relative_index
from segjax.weights import clip_sizes
from segjax.weights.engine import Rule
from segjax.weights.mit_names import module

STYLES = ("detectron2", "hf", "hf_memory")
_INSIDE = ("", "encoder.", "swin.encoder.")  # where the stages are
_EMBEDDING = ("patch_embed.", "embeddings.", "swin.embeddings.")
_QKV = ("attn.qkv", tuple(f"attention.self.{x}" for x in ("query", "key", "value")), tuple(f"attention.{x}_proj" for x in "qkv"))
BLOCK = {  # a module of a block: (arrays, then a name for each style; several names are joined)
    "attn/qkv": ("dense", *_QKV),
    "attn/proj": ("dense", "attn.proj", "attention.output.dense", "attention.o_proj"),
    "norm1": ("norm", "norm1", "layernorm_before", "layernorm_before"),
    "norm2": ("norm", "norm2", "layernorm_after", "layernorm_after"),
    "fc1": ("dense", "mlp.fc1", "intermediate.dense", "mlp.fc1"),
    "fc2": ("dense", "mlp.fc2", "output.dense", "mlp.fc2"),
}
TABLES = ("attn.", "attention.self.", "attention.relative_position_bias.")
"""What stands before `relative_position_bias_table`, and before `relative_position_index` where that is stored."""


def rules(style: str, ours: str, theirs: str) -> tuple[Rule, ...]:
    """The backbone's rules in one of `STYLES`. ours: a prefix of the path, `backbone/`; theirs: of the key, `backbone.`."""
    s = STYLES.index(style)
    patch = (f"{_EMBEDDING[s]}proj", f"{_EMBEDDING[s]}patch_embeddings.projection")[s > 0]
    result = [*module("conv", f"{ours}patch_embed_proj", f"{theirs}{patch}")]
    result += module("norm", f"{ours}patch_embed_norm", f"{theirs}{_EMBEDDING[s]}norm")
    for there, number in ((r"pairs/(plain|shifted)", "{i}"), (r"block(\d+)", "{1}")):
        at = f"{ours}layers_(\\d)/{there}/"
        block = f"{theirs}{_INSIDE[s]}layers.{{0}}.blocks.{number}."
        made = [Rule(f"params/{at}attn/(relative_position_bias_table)", f"{block}{TABLES[s]}{{2}}")]
        for place, (kind, *names) in BLOCK.items():
            name = names[s]
            made += module(kind, at + place, block + name if isinstance(name, str) else tuple(block + part for part in name))
        result += [dataclasses.replace(rule, number=_of_pair) for rule in made]
    down = f"{theirs}{_INSIDE[s]}layers.{{0}}.downsample."
    result += [*module("dense", f"{ours}layers_(\\d)_downsample/reduction", f"{down}reduction")]
    result += [*module("norm", f"{ours}layers_(\\d)_downsample/norm", f"{down}norm")]
    result += [rule for n in range(4) for rule in module("norm", f"{ours}norm{n}", theirs + _output_norm(s, n))]
    return (*result, *module("norm", f"{ours}norm", theirs + ("swin.layernorm" if s else "norm")))


def _of_pair(i: int, groups: tuple[str, ...]) -> int:
    return 2 * i + (groups[1] == "shifted")


def _output_norm(s: int, n: int) -> str:
    return f"hidden_states_norms.stage{n + 1}" if s else f"norm{n}"


INDICES = (r".*\.relative_position_index",)


def indices(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The buffers `relative_position_index` beside every bias table, int64."""
    tables = {key: x for key, x in arrays.items() if key.endswith(".relative_position_bias_table")}
    return {key.replace("bias_table", "index"): relative_index((math.isqrt(len(x)) + 1) // 2) for key, x in tables.items()}


def fields(source: Mapping[str, np.ndarray], style: str, theirs: str, layout: str) -> dict[str, Any]:
    """Fields of `segjax.nets.swin:Swin` from shapes alone. WeightsError: no Swin of four stages under those names."""
    s = STYLES.index(style)
    size = lambda key, rank: clip_sizes.shape(source, f"{theirs}{key}", rank, layout)
    stage = f"{_INSIDE[s]}layers"
    first = f"{stage}.0.blocks.0."
    if clip_sizes.depth(source, f"{theirs}{stage}") != 4:
        raise WeightsError(f"layout {layout}: no Swin of four stages under {theirs}{stage}: found {sorted(source)[:10]}")
    patch = (f"{_EMBEDDING[s]}proj", f"{_EMBEDDING[s]}patch_embeddings.projection")[s > 0]
    embed_dim, _, patch_size, _ = size(f"{patch}.weight", 4)
    heads = tuple(size(f"{stage}.{n}.blocks.0.{TABLES[s]}relative_position_bias_table", 2) for n in range(4))
    qkv = BLOCK["attn/qkv"][1 + s]
    hidden = size(f"{first}{BLOCK['fc1'][1 + s]}.weight", 2)[0]
    return {
        "embed_dim": embed_dim,
        "depths": tuple(clip_sizes.depth(source, f"{theirs}{stage}.{n}.blocks") for n in range(4)),
        "num_heads": tuple(count for _, count in heads),
        "window": (math.isqrt(heads[0][0]) + 1) // 2,
        "mlp_ratio": hidden / embed_dim,
        "patch_size": patch_size,
        "qkv_bias": f"{theirs}{first}{qkv if isinstance(qkv, str) else qkv[0]}.bias" in source,
        "final_norm": f"{theirs}{'swin.layernorm' if s else 'norm'}.weight" in source,
    }


def first_key(style: str) -> str:
    """A key that every Swin has in this style and in no other."""
    s = STYLES.index(style)
    return f"{_INSIDE[s]}layers.0.blocks.0.{TABLES[s]}relative_position_bias_table"


def is_stored(keys: Iterable[str]) -> bool:
    """Whether the buffers `relative_position_index` are in the file."""
    return any(key.endswith(".relative_position_index") for key in keys)
