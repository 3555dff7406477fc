"""Texts to the token ids of a CLIP, by the tokenizer files that lie with the model.

The byte-pair encoding is transformers' CLIPTokenizer, which needs no torch; it is read from `tokenizer.json`, or from `vocab.json` with
`merges.txt`. Nothing is downloaded and no vocabulary is packaged: every public CLIP has the same one.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from segjax.errors import WeightsError

FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files that hold a tokenizer, the preferred first."""
CONTEXT = 77
"""Context of every public CLIP, for a tokenizer whose own files do not tell."""


class Tokenizer:
    """Texts to int32 ids [N, context]: begin, the text's tokens, end, then padding; too long a text loses its last tokens, not the end.

    pad: the id of the padding. None takes the tokenizer's own, which for Hugging Face's CLIPs is the end token (Stable Diffusion 2's is
    0); OpenAI's and open_clip's code pads with 0. It matters only where every position is looked at, as in Stable Diffusion: a CLIP's
    vector is read at the first end token, which sees nothing after it.
    """

    def __init__(self, folder: "str | os.PathLike", *, context: int | None = None, pad: int | None = None):
        """WeightsError: the folder has no tokenizer, or a damaged one."""
        self._tokenizer = _load(find(folder))
        longest = self._tokenizer.model_max_length
        self.context = context or (longest if longest < 1 << 20 else CONTEXT)  # transformers' word for "not told" is a huge number
        self.pad = self._tokenizer.pad_token_id if pad is None else pad

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._tokenizer)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = self._tokenizer(list(texts), truncation=True, max_length=self.context)["input_ids"] if texts else []
        ids = np.full((len(rows), self.context), self.pad, np.int32)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        return ids

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has with begin and end, whole: one with more than `context` loses some when it is read."""
        return [len(row) for row in self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []


def find(folder: "str | os.PathLike") -> pathlib.Path:
    """The folder that holds tokenizer files: this one (of a file, the one around it), or `tokenizer` in it. WeightsError: neither."""
    given = pathlib.Path(folder)
    place = given if given.is_dir() else given.parent
    for candidate in (place, place / "tokenizer"):
        if any(all((candidate / name).is_file() for name in form) for form in FORMS):
            return candidate
    raise WeightsError(
        f"{place}: no tokenizer there ({' or '.join(' with '.join(form) for form in FORMS)}): copy those of the model's page beside the "
        "weights, or name a folder that has them; any OpenAI CLIP's serve every CLIP, e.g. openai/clip-vit-base-patch32"
    )


def _load(folder: pathlib.Path):
    from transformers import CLIPTokenizer  # slow to import, so only where texts are read

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise WeightsError(f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:200]}): fetch it again") from error
    if tokenizer.eos_token_id is None or tokenizer.bos_token_id is None or len(tokenizer) < 4:
        raise WeightsError(f"{folder}: its tokenizer has {len(tokenizer)} tokens and no begin or end among them: fetch it again")
    return tokenizer
