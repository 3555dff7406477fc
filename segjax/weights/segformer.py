"""Names of whole SegFormers: NVlabs, DAFormer's spelling of it, Hugging Face, mmsegmentation >= 0.20.

The fusion's kernel takes the stages in the order 1..4 here, in DAFormer and in mmsegmentation; NVlabs and Hugging Face concatenate 4..1,
so their four blocks of input channels are turned round.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights import mit
from segjax.weights import mit_names as names
from segjax.weights.engine import CONV, Layout, Public, Rule, Transform

_BATCHES = (r".*\.num_batches_tracked",)


def _turned(x: np.ndarray) -> np.ndarray:
    return np.concatenate(np.split(x, len(names.STAGES), axis=1)[::-1], axis=1)


TURNED_CONV = Transform(lambda x: CONV.to_segjax(_turned(x)), lambda x: _turned(CONV.to_source(x)))
"""`CONV` whose input channels are the four stages in the order 4..1 there."""


def _head(embed: str, fuse: str, norm: str, last: str, *, turned: bool = False, kind: str = "dense") -> tuple[Rule, ...]:
    """The head's rules. embed: name of a stage's embedding, with {s} from 1 or {n} from 0; kind: "dense" or mmsegmentation's "conv"."""
    at, rules = "decode_head/", [Rule("params/decode_head/linear_fuse/conv/kernel", f"{fuse}.weight", TURNED_CONV if turned else CONV)]
    for s in names.STAGES:
        theirs, ours = embed.format(s=s, n=s - 1), f"{at}linear_c{s}"
        if kind == "dense":
            rules += names.module("dense", ours, theirs)
        else:
            rules += [Rule(f"params/{ours}/conv/kernel", f"{theirs}.conv.weight", CONV)]
            rules += names.module("batch_norm", f"{ours}/bn", f"{theirs}.bn")
    return (*rules, *names.module("batch_norm", f"{at}linear_fuse/bn", norm), *names.module("conv", f"{at}linear_pred", last))


_D = "decode_head."
NVLABS = Layout(
    "segformer_nvlabs",
    (
        *names.rules("nvlabs", "backbone/", "backbone."),
        *_head(f"{_D}linear_c{{s}}.proj", f"{_D}linear_fuse.conv", f"{_D}linear_fuse.bn", f"{_D}linear_pred", turned=True),
    ),
    (*_BATCHES, r"decode_head\.conv_seg\.(weight|bias)"),
)
"""NVlabs/SegFormer; the file's `conv_seg` is a left-over of the base class that no output depends on."""
DAFORMERS = Layout(
    "segformer_daformer",
    (
        *names.rules("nvlabs", "backbone/", "backbone."),
        *_head(f"{_D}linear_c.{{n}}.proj", f"{_D}linear_fuse.conv", f"{_D}linear_fuse.bn", f"{_D}linear_pred"),
    ),
    (*_BATCHES, r"decode_head\.conv_seg\.(weight|bias)"),
)
"""SegFormerHead of lhoyer/DAFormer: a ModuleDict of embeddings, concatenated 1..4."""
MMSEG = Layout(
    "segformer_mmseg",
    (
        *names.rules("mmseg", "backbone/", "backbone."),
        *_head(f"{_D}convs.{{n}}", f"{_D}fusion_conv.conv", f"{_D}fusion_conv.bn", f"{_D}conv_seg", kind="conv"),
    ),
    _BATCHES,
)
HF_FORMS = tuple(
    Layout(
        f"segformer_hf{name}",
        (
            *names.rules(style, "backbone/", prefix),
            *_head(f"{_D}{embed}.{{n}}.proj", f"{_D}linear_fuse", f"{_D}batch_norm", f"{_D}classifier", turned=True),
        ),
        _BATCHES,
    )
    for style, name, prefix, embed in (
        ("hf", "", "segformer.encoder.", "linear_c"),
        ("hf_memory", "_memory", "segformer.", "linear_projections"),
    )
)
"""SegformerForSemanticSegmentation on disk (transformers 4 and 5) and as transformers 5 holds it in memory."""


def _hf_form(keys: Iterable[str]) -> Layout:
    return HF_FORMS[any(key.startswith("decode_head.linear_projections.") for key in keys)]


def _network(source: Mapping[str, np.ndarray], fuse: str, last: str, layout: str) -> dict[str, Any]:
    for key in (fuse, last):
        if key not in source or source[key].ndim != 4:
            raise WeightsError(f"layout {layout}: no convolution {key!r}: this is not that SegFormer")
    return {
        "make": "segjax.nets.segformer:SegFormer",
        "num_classes": int(source[last].shape[0]),
        "channels": int(source[fuse].shape[0]),
        "kernel_size": int(source[fuse].shape[-1]),
    }


def _nvlabs_model(layout: str) -> Any:
    def model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
        network = _network(source, "decode_head.linear_fuse.conv.weight", "decode_head.linear_pred.weight", layout)
        return network | mit.settings(source, "nvlabs", "backbone.", {}, layout)

    return model


def _mmseg_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    network = _network(source, "decode_head.fusion_conv.conv.weight", "decode_head.conv_seg.weight", "segformer_mmseg")
    return network | {"embed": "conv"} | mit.settings(source, "mmseg", "backbone.", {}, "segformer_mmseg")


def _hf_model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    network = _network(source, "decode_head.linear_fuse.weight", "decode_head.classifier.weight", "segformer_hf")
    classes = len(config.get("id2label", ())) or config.get("num_labels", network["num_classes"])
    if classes != network["num_classes"] or config.get("decoder_hidden_size", network["channels"]) != network["channels"]:
        told = f"{classes} classes and decoder_hidden_size {config.get('decoder_hidden_size')}"
        raise WeightsError(
            f"layout segformer_hf: config.json says {told}, the weights have {network['num_classes']} and {network['channels']}"
        )
    how = {"dropout": float(config.get("classifier_dropout_prob", 0.1)), "dropout_kind": "element"}
    return network | how | mit.hf_settings(source, config, "segformer_hf")


def _hf_config(spec: Mapping[str, Any]) -> dict[str, Any]:
    if spec.get("kernel_size", 1) != 1 or spec.get("embed", "linear") != "linear":
        raise WeightsError("layout segformer_hf: Hugging Face's head has linear embeddings and a 1x1 fusion: this network has others")
    labels = [f"LABEL_{n}" for n in range(spec["num_classes"])]
    return mit.config(spec) | {
        "architectures": ["SegformerForSemanticSegmentation"],
        "decoder_hidden_size": spec["channels"],
        "classifier_dropout_prob": spec.get("dropout", 0.1),
        "semantic_loss_ignore_index": 255,
        "id2label": {str(n): label for n, label in enumerate(labels)},
        "label2id": {label: n for n, label in enumerate(labels)},
    }


def _has(*needed: str) -> Any:
    return lambda keys: all(key in keys for key in needed)


SEGFORMER_NVLABS = Public(
    "segformer_nvlabs",
    recognises=_has("backbone.patch_embed1.proj.weight", "decode_head.linear_c1.proj.weight"),
    layout=lambda keys: NVLABS,
    model=_nvlabs_model("segformer_nvlabs"),
)
SEGFORMER_DAFORMER = Public(
    "segformer_daformer",
    recognises=_has("backbone.patch_embed1.proj.weight", "decode_head.linear_c.0.proj.weight"),
    layout=lambda keys: DAFORMERS,
    model=_nvlabs_model("segformer_daformer"),
)
SEGFORMER_MMSEG = Public(
    "segformer_mmseg",
    recognises=_has("backbone.layers.0.0.projection.weight", "decode_head.convs.0.conv.weight"),
    layout=lambda keys: MMSEG,
    model=_mmseg_model,
)
SEGFORMER_HF = Public(
    "segformer_hf",
    recognises=lambda keys: mit.is_hf(keys) and "decode_head.linear_fuse.weight" in keys,
    layout=_hf_form,
    model=_hf_model,
    config=_hf_config,
    forms=HF_FORMS,
)
