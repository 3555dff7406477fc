"""Texts to the token ids of a language model and back, by the tokenizer files that lie with it, chat template and all.

The tokenizer is transformers' AutoTokenizer, which needs no torch; nothing is downloaded and no code of a model is run.
"""

import json
import os
import pathlib
from typing import Any

from segjax.errors import WeightsError
from segjax.weights import llama_config

FILES = ("tokenizer.json", "tokenizer.model")
"""Either holds a tokenizer."""


class LanguageTokenizer:
    """Instructions to token ids, and new token ids to text.

    chat: whether the model has a chat template, which then wraps every instruction. stop: ids that end an answer: the tokenizer's end token
    and those of generation_config.json beside it, or of config.json.
    """

    def __init__(self, folder: "str | os.PathLike"):
        """WeightsError: the folder has no tokenizer, or a damaged one."""
        self._folder = find(folder)
        self._tokenizer = _load(self._folder)
        self.chat = bool(self._tokenizer.chat_template)
        self.stop = self._stop()

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self._tokenizer)

    def encode(self, instruction: str, system: str = "") -> list[int]:
        """The ids of a prompt. With a chat template: system and user message, and the start of the answer; else both as plain text.

        WeightsError: a chat template that does not take them.
        """
        if not self.chat:
            return list(self._tokenizer("\n\n".join(filter(None, (system, instruction))))["input_ids"])
        messages = [{"role": role, "content": text} for role, text in (("system", system), ("user", instruction)) if text]
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except ImportError as error:
            raise WeightsError(f"{self._folder}: its chat template needs jinja2 ({error}): pip install jinja2") from error
        except Exception as error:  # the template is a program of the model's makers, and raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(f"{self._folder}: its chat template does not take the prompt ({reason}): try without --system") from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """The text of new tokens, special ones left out."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def _stop(self) -> tuple[int, ...]:
        own = llama_config.end_tokens(self._tokenizer.eos_token_id)
        configs = (_settings(self._folder / name) for name in ("generation_config.json", "config.json"))
        told = next((config["eos_token_id"] for config in configs if config.get("eos_token_id") is not None), None)
        return tuple(sorted({*own, *llama_config.end_tokens(told)}))


def find(folder: "str | os.PathLike") -> pathlib.Path:
    """The folder that holds tokenizer files: this one, or of a file the one around it. WeightsError: none there."""
    given = pathlib.Path(folder)
    place = given if given.is_dir() else given.parent
    if not any((place / name).is_file() for name in FILES):
        raise WeightsError(
            f"{place}: no tokenizer there ({' or '.join(FILES)}): copy the tokenizer's files from the model's page, or name their folder"
        )
    return place


def _settings(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} where there is no such file. WeightsError: a damaged one."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: no JSON object ({error}): fetch it again") from error


def _load(folder: pathlib.Path) -> Any:
    from transformers import AutoTokenizer  # slow to import, so only where texts are read

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        alone = not (folder / "tokenizer.json").is_file()
        way = "tokenizer.model alone needs `pip install sentencepiece`, or fetch tokenizer.json too" if alone else "fetch it again"
        raise WeightsError(f"{folder}: its tokenizer cannot be read ({reason}): {way}") from error
