"""The pictures of a report: photograph, truth, every stage's prediction, and where the last stage beats the first."""

import base64
import html
import io
import pathlib

import numpy as np
from PIL import Image

from segjax.errors import DataError
from segjax.verbs.report_read import Run, Stage

WIDEST = 480
BETTER, WORSE, RIGHT_BOTH, WRONG_BOTH = (46, 160, 67), (218, 54, 51), (225, 228, 232), (150, 156, 164)


def strips(run: Run) -> str:
    """One block a data set, one row an image: photograph, truth, each stage. The pictures are embedded."""
    parts = []
    for dataset in dict.fromkeys(name for stage in run.stages for name in stage.scores):
        stages = [s for s in run.stages if dataset in s.scores and s.scores[dataset].samples]
        names = list(dict.fromkeys(name for s in stages for name in s.scores[dataset].samples))
        rows = [_strip(dataset, name, stages) for name in names]
        if rows:
            parts.append(f"<article><h3>{html.escape(dataset)}</h3>{''.join(rows)}</article>")
    return "".join(parts)


def _strip(dataset: str, name: str, stages: list[Stage]) -> str:
    files = {s.name: s.scores[dataset].samples.get(name, {}) for s in stages}
    shared = {kind: next((f[kind] for f in files.values() if kind in f), None) for kind in ("image", "truth")}
    cells = [_picture(path, kind) for kind, path in shared.items() if path]
    cells += [_picture(f["prediction"], stage) for stage, f in files.items() if "prediction" in f]
    compared = [f["prediction"] for f in files.values() if "prediction" in f]
    if shared["truth"] and len(compared) > 1:
        change = changes(*(np.asarray(_open(p)) for p in (shared["truth"], compared[0], compared[-1])))
        if change is not None:
            cells.append(_figure(_png(Image.fromarray(change)), "better, worse"))
    return f'<div class="strip"><p>{html.escape(name)}</p><div class="row" style="--n:{len(cells)}">{"".join(cells)}</div></div>'


def changes(truth: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """uint8 [H,W,3]: green where `after` alone agrees with the truth, red where `before` alone does; black truth (no label) stays
    black. None when the three sizes differ.
    """
    if not truth.shape == before.shape == after.shape:
        return None
    was, now = (truth == before).all(-1), (truth == after).all(-1)
    out = np.select([(~was & now)[..., None], (was & ~now)[..., None], (was & now)[..., None]], [BETTER, WORSE, RIGHT_BOTH], WRONG_BOTH)
    return np.where((truth == 0).all(-1, keepdims=True), 0, out).astype(np.uint8)


def whole(path: pathlib.Path, caption: str) -> str:
    """A picture at its own size."""
    return _figure(_encoded(_open(path)), caption, "whole")


def _picture(path: pathlib.Path, caption: str) -> str:
    image = _open(path)
    return _figure(_jpeg(image) if caption == "image" else _png(image), caption)


def _open(path: pathlib.Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not readable as an image ({error}): delete it or run `segjax evaluate` again") from None


def _shrink(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    if image.width <= WIDEST:
        return image
    return image.resize((WIDEST, max(1, round(image.height * WIDEST / image.width))), resample)


def _jpeg(image: Image.Image) -> str:
    return _encoded(_shrink(image, Image.Resampling.LANCZOS))


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _png(image: Image.Image) -> str:
    """Few flat colours: a palette PNG is exact and several times smaller."""
    small = _shrink(image, Image.Resampling.NEAREST)
    colours, indices = np.unique(np.asarray(small).reshape(-1, 3), axis=0, return_inverse=True)
    if len(colours) <= 256:
        flat = Image.fromarray(indices.reshape(small.height, small.width).astype(np.uint8), "P")
        flat.putpalette(colours.astype(np.uint8).tobytes())
        small = flat
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _figure(source: str, caption: str, kind: str = "") -> str:
    text, attribute = html.escape(caption), f' class="{kind}"' if kind else ""
    return f'<figure{attribute}><img src="{source}" alt="{text}" loading="lazy"><figcaption>{text}</figcaption></figure>'
