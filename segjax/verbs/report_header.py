"""The head of a report: what was run, when, with which versions, on which devices, by which command."""

import datetime
import html
import pathlib
import re
from typing import Any

from segjax.verbs import report_tables
from segjax.verbs.report_read import Run

E = html.escape


def header(runs: list[Run]) -> str:
    """HTML of what the newest stage's run.json says; what it leaves out is left out."""
    infos = [stage.info for run in runs for stage in run.stages if stage.info]
    info = infos[-1] if infos else {}
    done = sum(stage.done for run in runs for stage in run.stages)
    total = sum(len(run.stages) for run in runs)
    versions = ({"python": info["python"]} if "python" in info else {}) | dict(info.get("versions") or {})
    facts = {
        "runs": ", ".join(run.name for run in runs) if len(runs) > 1 else "",
        "stages": " → ".join(report_tables.stage_names(runs)) + ("" if done == total else f" ({done} of {total} finished)"),
        "started": _text(infos[0].get("started", "")).replace("T", " ").replace("+00:00", " UTC") if infos else "",
        "report made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "devices": devices(info.get("devices") or []),
        "mesh": _text(info.get("mesh", "")),
        "versions": _text(versions),
        "git": re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}", r"\1", _text(info.get("git") or info.get("commit") or "")),
    }
    rows = "".join(f"<div><dt>{E(k)}</dt><dd>{E(v)}</dd></div>" for k, v in facts.items() if v)
    line = command(info.get("command") or "")
    return f'<dl class="facts">{rows}</dl>' + (f'<pre class="command">{E(line)}</pre>' if line else "")


def command(words: "list[str] | str") -> str:
    """The command as a person would type it: without the folders of the program."""
    words = words.split(" ") if isinstance(words, str) else [str(word) for word in words]
    program = pathlib.PurePath(words[0])
    if program.name == "__main__.py":
        return " ".join(["python -m", program.parent.name, *words[1:]])
    return " ".join([program.name, *words[1:]])


def devices(value: Any) -> str:
    """A list of names ["cpu cpu 0", "cpu cpu 1"] -> "2 × cpu"; a dict of kind, count, processes -> "4 × TPU v5e, 2 processes"."""
    if not isinstance(value, dict):
        return _text([_device(str(device)) for device in value])
    count, processes = value.get("count", 1), value.get("processes", 1)
    name = str(value.get("kind") or value.get("platform", ""))
    return (f"{count} × {name}" if count != 1 else name) + (f", {processes} processes" if processes != 1 else "")


def _device(text: str) -> str:
    """Without the platform and the number, so that equal devices are counted: "tpu TPU v5e 3" -> "TPU v5e"."""
    platform, _, kind = re.sub(r"[ :]\d+$", "", text).partition(" ")
    return kind or platform


def _text(value: Any) -> str:
    """A short line of anything that run.json may hold; equal list entries are counted."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        texts = [_text(v) for v in value]
        return ", ".join(f"{texts.count(t)} × {t}" if texts.count(t) > 1 else t for t in dict.fromkeys(texts))
    return str(value)
