"""What shapes and configs say of a CLIP, shared by its public layouts."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from segjax.errors import WeightsError


def depth(keys: Iterable[str], prefix: str) -> int:
    """How many layers `{prefix}.N.` there are."""
    return len({found[1] for key in keys if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))})


def shape(source: Mapping[str, np.ndarray], key: str, rank: int, layout: str) -> tuple[int, ...]:
    """The shape of one array. WeightsError: it is not there, or has another number of axes."""
    if key not in source:
        raise WeightsError(f"layout {layout}: no {key!r}: found {sorted(source)[:10]}")
    found = tuple(int(size) for size in source[key].shape)
    if len(found) != rank:
        raise WeightsError(f"layout {layout}: {key} {found}: expected {rank} axes")
    return found


def heads(width: int, count: Any, where: str) -> int:
    """A head count that divides the width; for None OpenAI's rule, a head for every 64 channels. WeightsError."""
    count = max(1, width // 64) if count is None else count
    if not isinstance(count, int) or count < 1 or width % count:
        raise WeightsError(f"{where}: {count!r} attention heads do not divide the width {width}: is the config another network's?")
    return count


def activation(name: Any, where: str) -> str:
    """The activation of a config. WeightsError: not one that CLIP's weights come with."""
    if name not in ("gelu", "quick_gelu"):
        raise WeightsError(f"{where}: activation {name!r}: expected 'gelu' or 'quick_gelu'")
    return name


def side(positions: int, where: str) -> int:
    """The side of the square grid behind `positions` embeddings, of which one is the class token's. WeightsError: not a square."""
    found = math.isqrt(max(positions - 1, 0))
    if found < 1 or found * found != positions - 1:
        raise WeightsError(f"{where}: {positions} position embeddings are not 1 + a square: only square images are known")
    return found


def image_size(grid: int, stride: int, configured: Any) -> int:
    """The size of the training images: the configured one where it gives this grid, else the smallest that does."""
    return configured if isinstance(configured, int) and configured // stride == grid else grid * stride
