"""Captions out of a language model's answers: what it is asked, and how its answers become clean, different prompts.

CLOUDS (arXiv 2312.09788) takes 100 captions of Llama-2-70B-chat that name things of the street with a time of day, a weather or a season.
Its instruction was never published; `INSTRUCTION` is this package's own and asks for captions of that form.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from segjax.errors import ConfigError
from segjax.generation.prompts import Prompt

INSTRUCTION = (
    "Write {number} different captions of photographs that a camera behind the windscreen of a car could take in any city or countryside "
    'of the world. Every caption is one line of 8 to 17 English words, begins with "A photo of", "A picture of" or "A snapshot of", '
    "names things of the street ({classes}) and combines them with a time of day, a weather or a season. Vary all of them. "
    "Write the captions alone, one a line, without numbers and without quotation marks."
)
FOCUS = " In every caption this time: {class}."
"""What a request about one class adds."""
PLANS = ("all", "each")

_MARK = re.compile(
    r"^(?:[-*+>#•‣–—·]+\s+|[(\[]?\d{1,4}\s*[.):\]]+\s*|[(\[]?[a-z][.)]\s+|(?:caption|prompt|photo|image|picture)\s*#?\d+\s*[:.)-]\s*)+",
    re.I,
)
_QUOTES = "\"'“”‘’«»„`*_"
_TALK = re.compile(
    r"^(?:sure|certainly|of course|absolutely|okay|ok|here (?:are|is)|here's|i hope|i've|let me know|note|feel free|these captions)\b", re.I
)
_LONGEST = 12
"""Characters that a word may have on average before a caption counts as too long: a language model gone astray writes no spaces."""


class Request(NamedTuple):
    """number: of the request, from 0. text: the instruction. category: the class that it is about, "" for all of them."""

    number: int
    text: str
    category: str


class Answer(NamedTuple):
    """text: what the model wrote. cut: whether it was stopped before its end."""

    text: str
    cut: bool


class Limits(NamedTuple):
    """Words of a caption, at least and at most."""

    least: int = 3
    most: int = 40


class Collected(NamedTuple):
    """prompts: in the order of their requests. dropped: how many lines went, by reason."""

    prompts: list[Prompt]
    dropped: dict[str, int]


def request(number: int, instruction: str, classes: Sequence[str], plan: str, captions: int) -> Request:
    """The request of that number. instruction: with {number}, {classes} and {class} where they are wanted, braces elsewhere left alone.

    plan: "all" (every request is about all classes) or "each" (request n about class n modulo their count, and its captions carry its
    name; `FOCUS` is added where the instruction has no {class}). ConfigError: an unknown plan, no classes for "each".
    """
    if plan not in PLANS:
        raise ConfigError(f"plan={plan!r}: expected {' or '.join(PLANS)}")
    if plan == "each" and not classes:
        raise ConfigError("plan='each': needs classes")
    if plan == "all" and "{class}" in instruction:
        raise ConfigError("plan='all': the instruction asks for {class}, which plan='each' has")
    category = classes[number % len(classes)] if plan == "each" else ""
    text = instruction + (FOCUS if category and "{class}" not in instruction else "")
    for name, value in (("number", str(captions)), ("classes", ", ".join(classes)), ("class", category)):
        text = text.replace(f"{{{name}}}", value)
    return Request(number, text, category)


def lines(answer: Answer) -> Iterator[str]:
    """The lines of an answer as captions: numbers, bullets and quotes taken off, headings and the model's small talk left out.

    A JSON array of texts counts as its texts. A last line that was cut off is left out where others are there.
    """
    found = _array(answer.text)
    if found is None:
        found = [line for line in answer.text.replace("\r", "\n").split("\n") if line.strip() and not line.strip().startswith("```")]
        if answer.cut and len(found) > 1:
            found = found[:-1]
    for line in found:
        text = _stripped(line)
        if _bare(text) and not text.endswith(":") and not _TALK.match(text):
            yield text


def collect(answers: Iterable[tuple[Request, Answer]], limits: Limits, count: int | None = None) -> Collected:
    """The first `count` (None: all) different captions of answers in order. Two that differ in case, spaces or punctuation are one."""
    prompts: list[Prompt] = []
    known: set[str] = set()
    dropped = {"duplicate": 0, "too short": 0, "too long": 0}
    for asked, answer in answers:
        for text in lines(answer):
            if count is not None and len(prompts) == count:
                return Collected(prompts, dropped)
            reason = _reason(text, limits, known)
            if reason:
                dropped[reason] += 1
                continue
            known.add(_bare(text))
            prompts.append(Prompt(text, asked.category))
    return Collected(prompts, dropped)


def _reason(text: str, limits: Limits, known: set[str]) -> str:
    words = len(_bare(text).split())
    if words < limits.least:
        return "too short"
    if words > limits.most or len(text) > _LONGEST * limits.most:
        return "too long"
    return "duplicate" if _bare(text) in known else ""


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text)).casefold()


def _stripped(line: str) -> str:
    """One line without what stands around the caption, and without control characters and halves of characters."""
    line = "".join(" " if character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cs") else character for character in line)
    text, before = " ".join(line.split()), ""
    while text != before:  # `1. **"A photo of a car."**,` has one shell around the other
        before = text
        text = _MARK.sub("", text).strip().rstrip(",;").strip()
        if text and (text[0] in _QUOTES or text[-1] in _QUOTES) and not (text[0].isalnum() and text[-1] == "'"):
            text = text.strip(_QUOTES).strip()
    return text


def _array(text: str) -> list[str] | None:
    """The texts of an answer that is a JSON array of them, or of objects with one text each; None for any other answer."""
    inner = re.sub(r"^```\w*\s*|\s*```$", "", text.strip())
    if not inner.startswith("["):
        return None
    try:
        values: Any = json.loads(inner)
    except ValueError:
        return None
    values = [next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value for value in values]
    return values if all(isinstance(value, str) for value in values) else None
