"""A language model's answers on disk, each written as soon as it is there, and the loop that asks until there are prompts enough."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from segjax.errors import Preempted, SegjaxError
from segjax.generation import captions
from segjax.generation.captions import Answer, Collected, Request
from segjax.runtime.preemption import Preemption
from segjax.verbs import folder, prompt_sources, prompt_values, startup
from segjax.verbs.progress import progress


class Answers:
    """The answers to requests 0, 1, 2, ... in answers-DIGEST.jsonl, whose digest is that of all they depend on (`asking`).

    Other settings have another file, so that old answers serve again when old settings do. Every process reads them, the first one writes.
    """

    def __init__(self, place: pathlib.Path, asking: Mapping[str, Any]):
        self._path = place / f"answers-{folder.digest(asking)[:16]}.jsonl"
        startup.barrier("answers: before")
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        startup.barrier("answers: read")
        self._answers: list[Answer] = []
        for line in text.splitlines():
            answer = _parsed(line, len(self._answers))
            if answer is None:
                break  # a line that a kill cut off, and whatever follows it
            self._answers.append(answer)
        if jax.process_index() == 0 and text != (kept := "".join(map(_line, range(len(self)), self._answers))):
            self._path.unlink()
            self._write(kept)

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self):
        return iter(self._answers)

    def save(self, answers: Sequence[Answer]) -> None:
        """Adds the answers to the next requests. SegjaxError: the disk is full."""
        lines = "".join(_line(len(self) + n, answer) for n, answer in enumerate(answers))
        self._answers += answers
        if jax.process_index() == 0:
            self._write(lines)

    def _write(self, lines: str) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SegjaxError(f"{self._path}: cannot be written ({error.strerror}): free space, and the same command goes on") from error


def gather(spec: Mapping[str, Any], answers: Answers, mesh: jax.sharding.Mesh) -> tuple[Collected, int]:
    """Prompts from the answers that are there and, until they are enough or `requests` are spent, from new ones; and how many answers.

    The model is opened only if it is needed. Preempted: asked to stop, with all answers kept.
    """
    names = prompt_values.names(spec)
    request = lambda number: captions.request(number, spec["instruction"], names, spec["plan"], spec["captions"])
    asker, shown, turn = None, 0, 0
    with Preemption() as preemption, progress("prompts", spec["count"]) as advance:
        while True:
            pairs = [(request(number), answer) for number, answer in enumerate(answers)]
            found = captions.collect(pairs, prompt_values.limits(spec), spec["count"])
            advance(len(found.prompts) - shown)
            shown = len(found.prompts)
            if shown == spec["count"] or len(answers) >= spec["requests"]:
                return found, len(answers)
            stopped = preemption.pending() if spec["endpoint"] else preemption.requested(turn)  # an endpoint is asked by one process alone
            if stopped:
                raise Preempted(f"{stopped} after {shown} of {spec['count']} prompts: start the same command again to go on")
            if asker is None:
                texts = {request(number).text: None for number in range(len(names) if spec["plan"] == "each" else 1)}
                asker = prompt_sources.open_asker(spec, list(texts), mesh)
            end = min(len(answers) + asker.at_once, spec["requests"])
            asked: list[Request] = [request(number) for number in range(len(answers), end)]
            answers.save(asker.ask(asked))
            turn += 1


def _line(number: int, answer: Answer) -> str:
    return json.dumps({"request": number, **answer._asdict()}) + "\n"  # in ASCII: some of Unicode's characters end a line


def _parsed(line: str, number: int) -> Answer | None:
    try:
        row = json.loads(line)
        return Answer(str(row["text"]), bool(row["cut"])) if row["request"] == number else None
    except (ValueError, KeyError, TypeError):
        return None
