"""The torch side of `segjax bench --against=torch`, a process of its own: `python serve.py PEER FOLDER`, started by segjax.

FOLDER holds sizes.json and inputs.npz ("0/NAME", "1/NAME", ... sets of inputs that take turns). PEER is a module beside this file, or a
path to one, with

    prepare(sizes, sets, variant, device) -> Prepared(call, out, weights)

call(n) runs the work once on set n; out() is what segjax's answer to set 0 is held against, as numpy arrays by name; weights are the
network's tensors, for segjax to take over. Variants: "eager", "channels_last" and, on a GPU, "compiled" (a module without convolutions
sets VARIANTS); one that fails is left out, with what it said. Writes weights.safetensors and out.npz, prints one JSON line about itself
when all have run twice. Then "choose" on stdin times them, {"variant", "tried_ms"}: the fastest serves from there on; and every line N runs
N calls and answers {"seconds": [by the clock, of the processor]}, each for one call.
"""

import gc
import importlib.util
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file


class Prepared(NamedTuple):
    call: Callable[[int], Any]
    out: Callable[[], dict[str, np.ndarray]]
    weights: dict[str, torch.Tensor] = {}


def load(name: str):
    path = pathlib.Path(name) if name.endswith(".py") else pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chunk(prepared: Prepared, count: int, sets: int, device: str) -> list[float]:
    """Seconds a call, by the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    for n in range(count):
        prepared.call(n % sets)
    if device == "cuda":
        torch.cuda.synchronize()
    return [(time.perf_counter() - wall) / count, (time.process_time() - processor) / count]


def ready(module, sizes: dict, sets: list, device: str, folder: pathlib.Path) -> tuple[dict[str, Prepared], dict[str, str]]:
    """The variants that work, and the errors of the others. Weights and answer are those of the first that does."""
    made, failed = {}, {}
    for variant in getattr(module, "VARIANTS", ("eager", "channels_last")) + (("compiled",) if device == "cuda" else ()):
        torch.manual_seed(0)
        try:
            prepared = module.prepare(sizes, sets, variant, device)
            if not made:  # before any step has changed the weights
                weights = {key: value.detach().cpu().contiguous() for key, value in prepared.weights.items()}
                save_file(weights, folder / "weights.safetensors")
                np.savez(folder / "out.npz", **prepared.out())
            chunk(prepared, 2, len(sets), device)
            made[variant] = prepared
        except Exception as error:
            failed[variant] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(f"torch, {variant}: {failed[variant]}", file=sys.stderr, flush=True)
    if not made:
        raise SystemExit(1)
    return made, failed


def choose(made: dict[str, Prepared], sets: int, device: str) -> tuple[Prepared, dict[str, Any]]:
    """The fastest, of looks of some 50 ms."""
    tried = {}
    for variant, prepared in made.items():
        count = math.ceil(min(0.05 / chunk(prepared, 1, sets, device)[0], 1000))
        tried[variant] = min(chunk(prepared, count, sets, device)[0] for _ in range(3)) * 1e3
    best = min(tried, key=tried.get)
    return made[best], {"variant": best, "tried_ms": tried}


def main() -> None:
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    sizes, device = json.loads((folder / "sizes.json").read_text()), "cuda" if torch.cuda.is_available() else "cpu"
    flat = dict(np.load(folder / "inputs.npz"))
    count = 1 + max(int(key.split("/")[0]) for key in flat)
    sets = [{key.split("/")[1]: value for key, value in flat.items() if key.startswith(f"{n}/")} for n in range(count)]
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision(sizes.get("precision", "high"))
    made, failed = ready(load(name), sizes, sets, device, folder)
    about = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        about |= {"card": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}
    print(json.dumps(about | ({"failed": failed} if failed else {})), flush=True)
    best = next(iter(made.values()))
    for line in sys.stdin:
        if line.strip() == "choose":
            best, told = choose(made, count, device)
            made = {}
            gc.collect()
            if device == "cuda":  # the others' memory is segjax's from here on
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                chunk(best, 1, count, device)
                told["peak_bytes"] = torch.cuda.max_memory_allocated()
            print(json.dumps(told), flush=True)
        else:
            print(json.dumps({"seconds": chunk(best, int(line), count, device)}), flush=True)


if __name__ == "__main__":
    main()
