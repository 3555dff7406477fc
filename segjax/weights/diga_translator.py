"""Names of DiGA's translator: the folder with its `enc_s.pth` and `dec_s2t.pth` (`segjax.weights.sources`), keys under the files' names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError
from segjax.weights.engine import CONV, Layout, Public, Rule

_FIRST, _LAST = "enc_s.model.0.conv.weight", "dec_s2t.model.5.conv.weight"


def _conv(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"params/{ours}/conv/kernel", f"{theirs}.conv.weight", CONV), Rule(f"params/{ours}/conv/bias", f"{theirs}.conv.bias")


LAYOUT = Layout(
    "diga_translator",
    (
        *_conv("encoder/stem", "enc_s.model.0"),
        *_conv(r"encoder/down(\d)", "enc_s.model.{0}"),
        *_conv("encoder/blocks/unit1", "enc_s.model.3.model.{i}.model.0"),
        *_conv("encoder/blocks/unit2", "enc_s.model.3.model.{i}.model.1"),
        *_conv("decoder/blocks/unit1", "dec_s2t.model.0.model.{i}.model.0"),
        *_conv("decoder/blocks/unit2", "dec_s2t.model.0.model.{i}.model.1"),
        *_conv("decoder/up1", "dec_s2t.model.2"),
        *_conv("decoder/up2", "dec_s2t.model.4"),
        *_conv("decoder/last", "dec_s2t.model.5"),
    ),
)


def _model(source: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, Any]:
    blocks = {
        len({key.split(".")[4] for key in source if key.startswith(f"{part}.model.")}) for part in ("enc_s.model.3", "dec_s2t.model.0")
    }
    if _FIRST not in source or _LAST not in source or len(blocks) != 1:
        raise WeightsError(f"layout {LAYOUT.name}: {sorted(blocks)} blocks: expected {_FIRST}, {_LAST} and as many blocks in each")
    return {"make": "segjax.nets.translator:Translator", "width": int(source[_FIRST].shape[0]), "blocks": blocks.pop()}


DIGA_TRANSLATOR = Public(
    "diga_translator",
    recognises=lambda keys: {_FIRST, _LAST} <= set(keys),
    layout=lambda keys: LAYOUT,
    model=_model,
)
