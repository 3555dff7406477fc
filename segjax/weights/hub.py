"""Models of the Hugging Face hub by name: `org/name`, `org/name@revision`, `org/name@revision:file`, fetched once and cached by its client.

Only what is needed is fetched: in each folder of the model one form of its weights, and the small files of text beside them.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Sequence

from segjax.errors import WeightsError

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[\w./-]+))?")
_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json", ".net", ".t7", ".npz")
_TEXT = (".json", ".txt", ".model")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """path: the model's folder in the cache, or the one file that was asked for. commit: hash of the revision that was read."""

    path: pathlib.Path
    repo: str
    revision: str
    commit: str

    @property
    def origin(self) -> dict[str, str]:
        """For the report beside converted weights."""
        return {"repo": self.repo, "revision": self.revision, "commit": self.commit}


def parse(text: str | os.PathLike) -> tuple[str, str, str] | None:
    """(repo, revision, file or "") of a hub name; None for what is a path: it exists, its first folder does, or it ends like a file."""
    text = os.fspath(text)
    match = _NAME.fullmatch(text)
    if match is None or os.path.exists(text) or os.path.isdir(text.split("/")[0]):
        return None
    if match["file"] is None and text.endswith(_FILES):
        return None
    return match["repo"], match["revision"] or "main", match["file"] or ""


@functools.lru_cache(maxsize=32)
def fetch(name: str, weights: Sequence[str]) -> Fetched:
    """A model of the hub in the local cache. weights: names of weights files, the preferred first (`sources.WEIGHTS`).

    Without a network the cache alone is asked. WeightsError: no huggingface_hub, no such model or revision or file, nothing cached.
    """
    found = parse(name)
    if found is None:
        raise WeightsError(f"{name}: not a model of the hub: expected org/name, org/name@revision or org/name@revision:file")
    repo, revision, file = found
    try:
        import huggingface_hub as client
        from huggingface_hub import errors
    except ImportError as error:
        raise WeightsError(f"{name}: no such path here, and huggingface_hub is missing: pip install 'segjax[convert]'") from error
    try:
        info = client.HfApi().model_info(repo, revision=revision)
        commit = str(info.sha)
        there = [entry.rfilename for entry in info.siblings or ()]
        chosen = choose(there, weights) if not file else [each for each in there if each == file]
        if not chosen:
            raise WeightsError(f"{name}: the hub's model holds {there[:10]}, expected {file or f'one of {weights}'}")
        folder = client.snapshot_download(repo, revision=commit, allow_patterns=chosen)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:  # private and gated ones as well
        reason = "revision" if isinstance(error, errors.RevisionNotFoundError) else "model that may be read without a login"
        raise WeightsError(f"{name}: no such path here, and the hub has no such {reason}: check the name, or `hf auth login`") from error
    except WeightsError:
        raise
    except Exception as error:  # offline: the client lets through the errors of whatever HTTP library it uses
        folder = _cached(client, name, repo, revision, error)
        commit = pathlib.Path(folder).name  # the cache calls its folders by the commit
    path = pathlib.Path(folder) / file
    if not path.exists():
        raise WeightsError(f"{name}: {path} is not in the cache: run it once where the hub can be reached")
    return Fetched(path, repo, revision, commit)


def _cached(client, name: str, repo: str, revision: str, error: Exception) -> str:
    try:
        return client.snapshot_download(repo, revision=revision, local_files_only=True)
    except Exception:  # whatever is wrong with the cache, the network is what is missing
        way = f"`hf download {repo} --revision {revision} --local-dir DIR`"
        raise WeightsError(
            f"{name}: no such path here, not in the cache, and the hub is out of reach ({type(error).__name__}): "
            f"run {way} where there is a network and give DIR"
        ) from error


def choose(files: Sequence[str], weights: Sequence[str]) -> list[str]:
    """Of a model's files those to fetch: per folder the first of `weights` there is, the shards of an index, and the texts."""
    chosen = []
    for folder in sorted({os.path.dirname(file) for file in files}):
        here = {os.path.basename(file): file for file in files if os.path.dirname(file) == folder}
        best = next((name for name in weights if name in here), None)
        shards = re.compile(re.escape(re.sub(r"\.(safetensors|bin)\.index\.json$", "", best)) + r"-\d+-of-\d+\.\w+") if best else None
        for name, file in here.items():
            text = name.endswith(_TEXT) and not name.endswith(".index.json")
            if name == best or text or (best and best.endswith(".index.json") and shards and shards.fullmatch(name)):
                chosen.append(file)
    return chosen
