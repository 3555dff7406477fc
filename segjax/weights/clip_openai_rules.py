"""Names of CLIP's parameters in OpenAI's files and open_clip's: ViT, ResNet and ConvNeXt towers, and the text tower."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from segjax.weights.engine import CONV, DENSE, IDENTITY, Layout, Rule

SCALARS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's files hold beside the parameters, and no other's."""
_IGNORED = (r".*\.num_batches_tracked", *SCALARS, r"(text\.)?attn_mask")
_TEXT_KEYS = (r"(text\.)?(transformer|token_embedding|ln_final)\..*", r"(text\.)?(positional_embedding|text_projection)", "logit_scale")
_NORM = (("scale", "weight"), ("bias", "bias"))
_LINEAR = (("kernel", "weight", DENSE), ("bias", "bias", IDENTITY))
_CONVOLUTION = (("kernel", "weight", CONV), ("bias", "bias", IDENTITY))
_BATCH_NORM = (
    ("params", "scale", "weight"),
    ("params", "bias", "bias"),
    ("batch_stats", "mean", "running_mean"),
    ("batch_stats", "var", "running_var"),
)


def _transformer(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The scanned blocks under the path `ours` and the prefix `theirs`."""
    at, there = f"params/{ours}resblocks", f"{theirs}transformer.resblocks.{{i}}"
    rules = [
        Rule(f"{at}/in_proj/kernel", f"{there}.attn.in_proj_weight", DENSE),
        Rule(f"{at}/in_proj/bias", f"{there}.attn.in_proj_bias"),
    ]
    for kind, suffix, transform in _LINEAR:
        rules.append(Rule(f"{at}/out_proj/{kind}", f"{there}.attn.out_proj.{suffix}", transform))
        rules.append(Rule(f"{at}/(c_fc|c_proj)/{kind}", f"{there}.mlp.{{0}}.{suffix}", transform))
    rules += [Rule(f"{at}/(ln_\\d)/{kind}", f"{there}.{{0}}.{suffix}") for kind, suffix in _NORM]
    return tuple(rules)


def _text(theirs: str) -> tuple[Rule, ...]:
    return (
        Rule("params/text/token_embedding", f"{theirs}token_embedding.weight"),
        Rule("params/text/positional_embedding", f"{theirs}positional_embedding"),
        *_transformer("text/", theirs),
        *(Rule(f"params/text/ln_final/{kind}", f"{theirs}ln_final.{suffix}") for kind, suffix in _NORM),
        Rule("params/text/text_projection/kernel", f"{theirs}text_projection"),
        Rule("params/logit_scale", "logit_scale"),
    )


def _vit(ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"params/{ours}(class_embedding|positional_embedding)", "visual.{0}"),
        Rule(f"params/{ours}conv1/kernel", "visual.conv1.weight", CONV),
        *(Rule(f"params/{ours}(ln_pre|ln_post)/{kind}", f"visual.{{0}}.{suffix}") for kind, suffix in _NORM),
        *_transformer(ours, "visual."),
        Rule(f"params/{ours}proj/kernel", "visual.proj"),
    )


def _resnet(ours: str) -> tuple[Rule, ...]:
    """Stem, the first block and the scanned rest of each stage, attention pool."""
    rules = [Rule(f"params/{ours}(conv[123])/kernel", "visual.{0}.weight", CONV)]
    rules += [Rule(f"{kind}/{ours}(bn[123])/{here}", f"visual.{{0}}.{there}") for kind, here, there in _BATCH_NORM]
    for stage, block, first in ((r"(layer\d)_0", "0", 0), (r"(layer\d)_rest", "{i}", 1)):
        at = f"visual.{{0}}.{block}"
        rules.append(Rule(f"params/{ours}{stage}/(conv\\d)/kernel", f"{at}.{{1}}.weight", CONV, first))
        rules.append(Rule(f"params/{ours}{stage}/downsample_conv/kernel", f"{at}.downsample.0.weight", CONV, first))
        for kind, here, there in _BATCH_NORM:
            rules.append(Rule(f"{kind}/{ours}{stage}/(bn\\d)/{here}", f"{at}.{{1}}.{there}", IDENTITY, first))
            rules.append(Rule(f"{kind}/{ours}{stage}/downsample_bn/{here}", f"{at}.downsample.1.{there}", IDENTITY, first))
    rules.append(Rule(f"params/{ours}attnpool/positional_embedding", "visual.attnpool.positional_embedding"))
    rules += [Rule(f"params/{ours}attnpool/([qkvc]_proj)/{here}", f"visual.attnpool.{{0}}.{there}", t) for here, there, t in _LINEAR]
    return tuple(rules)


def _convnext(ours: str) -> tuple[Rule, ...]:
    trunk, block = f"{ours}trunk", r"stages_(\d)_blocks"
    at = "visual.trunk.stages.{0}"
    rules = [Rule(f"params/{trunk}/{block}/gamma", f"{at}.blocks.{{i}}.gamma")]
    for here, there, transform in _CONVOLUTION:
        rules.append(Rule(f"params/{trunk}/stem_0/{here}", f"visual.trunk.stem.0.{there}", transform))
        rules.append(Rule(f"params/{trunk}/stages_(\\d)_downsample_1/{here}", f"{at}.downsample.1.{there}", transform))
        rules.append(Rule(f"params/{trunk}/{block}/conv_dw/{here}", f"{at}.blocks.{{i}}.conv_dw.{there}", transform))
    for here, there in _NORM:
        rules.append(Rule(f"params/{trunk}/stem_1/{here}", f"visual.trunk.stem.1.{there}"))
        rules.append(Rule(f"params/{trunk}/stages_(\\d)_downsample_0/{here}", f"{at}.downsample.0.{there}"))
        rules.append(Rule(f"params/{trunk}/{block}/norm/{here}", f"{at}.blocks.{{i}}.norm.{there}"))
        rules.append(Rule(f"params/{ours}head_norm/{here}", f"visual.trunk.head.norm.{there}"))
    for here, there, transform in _LINEAR:
        rules.append(Rule(f"params/{trunk}/{block}/(fc\\d)/{here}", f"{at}.blocks.{{i}}.mlp.{{1}}.{there}", transform))
        rules.append(Rule(f"params/{ours}head_(fc\\d)/{here}", f"visual.head.mlp.{{0}}.{there}", transform))
    rules.append(Rule(f"params/{ours}head_proj/kernel", "visual.head.proj.weight", DENSE))
    return tuple(rules)


def _vision(ours: str) -> tuple[Rule, ...]:
    return (*_vit(ours), *_resnet(ours), *_convnext(ours))


def _sizes(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's three scalars, int64; of the image size what the grid of positions says."""
    pooled = arrays.get("visual.attnpool.positional_embedding")
    positions, stride = (
        (pooled, 32) if pooled is not None else (arrays["visual.positional_embedding"], arrays["visual.conv1.weight"].shape[-1])
    )
    sizes = (math.isqrt(len(positions) - 1) * stride, len(arrays["positional_embedding"]), len(arrays["token_embedding.weight"]))
    return {name: np.array(size, np.int64) for name, size in zip(SCALARS, sizes, strict=True)}


PLAIN = Layout("clip_openai", (*_text(""), *_vision("visual/")), _IGNORED)
WITH_SIZES = dataclasses.replace(PLAIN, name="clip_openai_sizes", derived=_sizes)
"""As OpenAI saves them: by the scalars a file without a config is known as one of its own, with quick GELU."""
CUSTOM_TEXT = Layout("clip_openai_text", (*_text("text."), *_vision("visual/")), _IGNORED)
"""open_clip's CustomTextCLIP: `text.` before the text tower's keys."""
VISION = Layout("clip_openai_vision", _vision(""), (*_IGNORED, *_TEXT_KEYS))
"""The vision tower alone; a text tower in the file is left out."""
