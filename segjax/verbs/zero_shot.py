"""Classes in words: names, synonyms and prompt templates for CLIP's zero-shot scores, and their vectors."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from segjax.data import label_spaces
from segjax.errors import ConfigError

TEMPLATES = ("a photo of a {}.",)
"""OpenAI's prompt where nothing is known of the pictures."""
_PLAIN = ("a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene", "There is the {} in the scene")
_WITH_SIZE = ("a photo of a {} {{}}.", "This is a photo of a {} {{}}.", "There is a {} {{}} in the scene.")
_SIZED = (text.format(size) for text in _WITH_SIZE for size in ("small", "medium", "large"))
NAMED_TEMPLATES = {"vild": (*_PLAIN, "a photo of a {} in the scene", *_SIZED)}
"""`vild`: the 14 prompts of ViLD (Gu et al. 2022, arXiv 2104.13921), over which fc-clip and CLOUDS take the mean."""
NAMED_CLASSES = {
    "cityscapes19_words": (
        *("road, railroad", "sidewalk, pavement", "building, buildings, edifice, edifices, house, ceiling"),
        *("wall, walls, brick wall, stone wall, tile wall, wood wall", "fence, fences", "pole, poles"),
        *("traffic light, traffic lights", "traffic sign, stop sign", "vegetation, tree, trees, palm tree, bushes"),
        *("terrain, river, sand, sea, snow, water, mountain, grass, dirt, rock", "sky, clouds", "person", "rider", "car, cars"),
        *("truck, trucks", "bus, buses", "train, trains, locomotive, locomotives, freight train", "motorcycle, motorcycles"),
        "bicycle, bicycles, bike, bikes",
    )
}
"""`cityscapes19_words`: Cityscapes' classes with the synonyms of fc-clip and CLOUDS."""
MODEL_KEYS = ("clip", "tokenizer", "classes", "templates")
"""Keys of a stage's `model.words`."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """names: one a class, as the tables show it. synonyms: the words that stand for each class; a class scores as its best synonym."""

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many words each class has."""
        return tuple(len(words) for words in self.synonyms)

    @property
    def of_synonym(self) -> np.ndarray:
        """int [S]: the class of every synonym, in order."""
        return np.repeat(np.arange(len(self.names)), self.counts)


def classes(text: str, where: str = "--classes") -> Classes:
    """The classes of `NAMED_CLASSES`, of a label space by its name, or of a file with a class a line: `car, cars` are synonyms, `3: car`
    carries a number (ignored: classes count from 0 in the file's order). where: what a message calls `text`.

    ConfigError: none of them, an empty file, more classes than a label PNG can hold.
    """
    path = pathlib.Path(text)
    if text in NAMED_CLASSES or path.is_file():
        lines = NAMED_CLASSES.get(text) or path.read_text(encoding="utf-8").splitlines()
        lines = [re.sub(r"^\s*\d+\s*:", "", line).strip() for line in lines]
        words = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines if line]
    elif path.suffix or "/" in text:
        raise ConfigError(f"{where}={text}: no such file")
    else:
        words = [(name,) for name in label_spaces.get(text).classes]
    if not 0 < len(words) < 255 or not all(words):
        raise ConfigError(f"{where}={text}: {len(words)} classes: expected 1 to 254 lines with a name each")
    return Classes(tuple(synonyms[0] for synonyms in words), tuple(words))


def templates(path: str, where: str = "--templates") -> tuple[str, ...]:
    """The prompts of `NAMED_TEMPLATES`, or of a file, one a line with {} for the class; "" gives `TEMPLATES`.

    ConfigError: neither, a line without its one {}.
    """
    if not path:
        return TEMPLATES
    if path in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[path]
    if not pathlib.Path(path).is_file():
        raise ConfigError(f"{where}={path}: no such file, and not {' or '.join(NAMED_TEMPLATES)}")
    lines = tuple(line.strip() for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    wrong = next((line for line in lines if line.count("{}") != 1), None)
    if not lines or wrong is not None:
        raise ConfigError(f"{where}={path}: expected lines with one {{}} for the class, e.g. {TEMPLATES[0]!r}, got {wrong or 'no line'!r}")
    return lines


def of_model(words: Any, where: str) -> Classes:
    """The classes of a stage's `model.words` (`verbs.words`). ConfigError: another value than a mapping of its keys, no such classes."""
    if not isinstance(words, Mapping) or set(words) != set(MODEL_KEYS) or not all(isinstance(text, str) for text in words.values()):
        raise ConfigError(f"{where}={words!r}: expected texts for {', '.join(MODEL_KEYS)}")
    return classes(words["classes"], f"{where}.classes")


def vectors(chosen: Classes, prompts: Sequence[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """[S,E], one vector of length 1 a synonym: the mean of its prompts' vectors, normalised again (OpenAI's prompt ensemble)."""
    words = [word for synonyms in chosen.synonyms for word in synonyms]
    # replace, not format: a class may have braces in its name
    encoded = encode([prompt.replace("{}", word) for word in words for prompt in prompts])
    mean = encoded.reshape(len(words), len(prompts), -1).mean(1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def best_synonyms(similarity: np.ndarray, chosen: Classes) -> np.ndarray:
    """[...,S] -> [...,K]: each class's best synonym."""
    first = np.cumsum([0, *chosen.counts[:-1]])
    return np.maximum.reduceat(similarity, first, axis=-1)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
