"""Connected components of all classes beside scipy's, in one run: `python scripts/bench_components.py [--labels=DIR] [--out=FILE.jsonl]`.

Label maps of 768 x 768: of procedural street scenes, of a folder (nearest-neighbour resized), noise of 2 and 19 classes, serpentines. Each
is first checked to be the same partition, then both sides are timed in turn; ratios of medians of processor time (all threads), which
other work on the machine disturbs less, and of wall time.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from importlib.metadata import version

ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

import jax  # noqa: E402
import numpy as np  # noqa: E402
from peers import components_scipy  # noqa: E402
from PIL import Image  # noqa: E402

from segjax.data.procedural import StreetScenes  # noqa: E402
from segjax.ops.components import components  # noqa: E402

SIZE = 768


def maps(folder: pathlib.Path | None, count: int) -> dict[str, np.ndarray]:
    """Name -> label map uint8 [SIZE,SIZE]."""
    resized = lambda label: np.asarray(Image.fromarray(label).resize((SIZE, SIZE), Image.Resampling.NEAREST))
    scenes = StreetScenes(size=(SIZE, SIZE), length=count)
    found = {f"scene {n}": np.asarray(scenes[n]["label"]) for n in range(count)}
    if folder is not None:
        paths = sorted(folder.glob("*.png"))
        found |= {path.stem: resized(np.asarray(Image.open(path))) for path in paths[:: max(1, len(paths) // count)][:count]}
    rng = np.random.default_rng(0)
    found |= {f"noise of {k} classes": rng.integers(0, k, (SIZE, SIZE)).astype(np.uint8) for k in (2, 19)}
    path = np.zeros((SIZE, SIZE), np.uint8)
    path[::2] = 1
    path[1::4, -1] = path[3::4, 0] = 1
    return found | {"serpentine along rows": path, "serpentine along columns": np.ascontiguousarray(path.T)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=pathlib.Path, default=None, metavar="DIR", help="label PNGs, e.g. of CamVid")
    parser.add_argument("--count", type=int, default=4, help="maps of each kind")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"components-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    call = jax.jit(components)
    about = {"backend": jax.default_backend(), "repeats": args.repeats, "cores": os.cpu_count(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("jax", "scipy", "numpy")}
    rows = []
    for name, label in maps(args.labels, args.count).items():
        given = jax.device_put(label[None])
        got = np.asarray(call(given))[0]
        assert (got == components_scipy.first_pixels(label)).all(), f"{name}: not scipy's components"
        sides = {"segjax": lambda given=given: jax.block_until_ready(call(given)), "scipy": lambda x=label: components_scipy.components(x)}
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(args.repeats):
            for side, run in sides.items():
                begun, spent = time.perf_counter(), time.process_time()
                run()
                taken[side].append(((time.perf_counter() - begun) * 1e3, (time.process_time() - spent) * 1e3))
        wall, processor = ({side: round(statistics.median(t[n] for t in times), 2) for side, times in taken.items()} for n in (0, 1))
        row = {"case": f"components of {SIZE}x{SIZE}, {name}", "components": len(np.unique(got)), "classes": len(np.unique(label))}
        row |= {"median_ms": wall, "times_scipy": round(wall["segjax"] / wall["scipy"], 2)}
        row |= {"median_processor_ms": processor, "times_scipy_processor": round(processor["segjax"] / processor["scipy"], 2)}
        rows.append(row | about)
        print(f"{row['case']}: {row['components']} components, {wall['segjax']} ms, {row['times_scipy']}x scipy", end="")
        print(f" ({row['times_scipy_processor']}x its processor time)", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
