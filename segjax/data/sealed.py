"""A JSON file that holds the sha256 of its own values: written last, it says that what lies beside it is whole and as it was made."""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from segjax.errors import DataError


def digest(summary: Mapping[str, Any]) -> str:
    """sha256 over the values but for `sha256` itself."""
    kept = {key: value for key, value in summary.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read(path: pathlib.Path, holds: str, again: str) -> dict[str, Any]:
    """The values of such a file. holds: what its folder does, e.g. "labels"; again: how one makes it.

    DataError: no folder, none in it (half written), damaged, changed by hand.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder of {holds}: {again}")
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no {path.name}, so its {holds} are not whole (or are something else): {again}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:120]}): {again}") from None
    if not isinstance(summary, dict) or summary.get("sha256") != digest(summary):
        raise DataError(f"{path} was changed after it was written: {again} (delete it first)")
    return summary
