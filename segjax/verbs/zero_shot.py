"""Classes in words: names, synonyms and prompt templates for CLIP's zero-shot scores, and their vectors."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np

from segjax.data import label_spaces
from segjax.errors import ConfigError

TEMPLATES = ("a photo of a {}.",)
"""OpenAI's prompt where nothing is known of the pictures."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """names: one a class, as the tables show it. synonyms: the words that stand for each class; a class scores as its best synonym."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]

    @property
    def of_synonym(self) -> np.ndarray:
        """int [S]: the class of every synonym, in order."""
        return np.repeat(np.arange(len(self.names)), [len(words) for words in self.synonyms])


def classes(text: str) -> Classes:
    """The classes of a label space by its name, or of a file with a class a line: `car, cars` are synonyms, `3: car` carries a number
    (ignored: classes count from 0 in the file's order). ConfigError: neither, an empty file, more classes than a label PNG can hold.
    """
    path = pathlib.Path(text)
    if path.is_file():
        lines = [re.sub(r"^\s*\d+\s*:", "", line).strip() for line in path.read_text(encoding="utf-8").splitlines()]
        words = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines if line]
    elif path.suffix or "/" in text:
        raise ConfigError(f"--classes={text}: no such file")
    else:
        words = [(name,) for name in label_spaces.get(text).classes]
    if not 0 < len(words) < 255 or not all(words):
        raise ConfigError(f"--classes={text}: {len(words)} classes: expected 1 to 254 lines with a name each")
    return Classes(tuple(synonyms[0] for synonyms in words), tuple(words))


def templates(path: str) -> tuple[str, ...]:
    """The prompts of a file, one a line with {} for the class; "" gives `TEMPLATES`. ConfigError: no file, a line without its one {}."""
    if not path:
        return TEMPLATES
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"--templates={path}: no such file")
    lines = tuple(line.strip() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if not lines or wrong is not None:
        raise ConfigError(
            f"--templates={path}: expected lines with one {{}} for the class, e.g. {TEMPLATES[0]!r}, got {wrong or 'no line'!r}"
        )
    return lines


def vectors(chosen: Classes, prompts: Sequence[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """[S,E], one vector of length 1 a synonym: the mean of its prompts' vectors, normalised again (OpenAI's prompt ensemble)."""
    words = [word for synonyms in chosen.synonyms for word in synonyms]
    # replace, not format: a class may have braces in its name
    encoded = encode([prompt.replace("{}", word) for word in words for prompt in prompts])
    mean = encoded.reshape(len(words), len(prompts), -1).mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def best_synonyms(similarity: np.ndarray, chosen: Classes) -> np.ndarray:
    """[...,S] -> [...,K]: each class's best synonym."""
    first = np.cumsum([0, *(len(words) for words in chosen.synonyms[:-1])])
    return np.maximum.reduceat(similarity, first, axis=-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
