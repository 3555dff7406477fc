"""The torch side of `segjax bench --against=torch`, a process of its own: `python serve.py PEER FOLDER`, started by segjax.

FOLDER holds sizes.json and inputs.npz ("0/NAME", "1/NAME", ... sets of inputs that take turns). PEER is a module beside this file, or a
path to one, with

    prepare(sizes, sets, variant, device) -> Prepared(call, out, weights)

call(n) runs the work once on set n; out() is what segjax's answer to set 0 is held against, as numpy arrays by name; weights are the
network's tensors, for segjax to take over. Variants: "eager", "channels_last" and, on a GPU, "compiled"; the fastest one serves (a module
without convolutions sets VARIANTS). Writes weights.safetensors and out.npz, prints one JSON line about itself; then every line N on stdin
runs N calls and answers {"seconds": [by the clock, of the processor]}, each for one call.
"""

import importlib.util
import json
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


def main() -> None:
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    sizes, device = json.loads((folder / "sizes.json").read_text()), "cuda" if torch.cuda.is_available() else "cpu"
    flat = dict(np.load(folder / "inputs.npz"))
    count = 1 + max(int(key.split("/")[0]) for key in flat)
    sets = [{key.split("/")[1]: value for key, value in flat.items() if key.startswith(f"{n}/")} for n in range(count)]
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    module = load(name)
    tried, best = {}, None
    for variant in getattr(module, "VARIANTS", ("eager", "channels_last")) + (("compiled",) if device == "cuda" else ()):
        torch.manual_seed(0)
        prepared = module.prepare(sizes, sets, variant, device)
        if best is None:  # before any step has changed the weights
            save_file({key: value.detach().cpu().contiguous() for key, value in prepared.weights.items()}, folder / "weights.safetensors")
            np.savez(folder / "out.npz", **prepared.out())
        chunk(prepared, 2, count, device)
        tried[variant] = min(chunk(prepared, 1, count, device)[0] for _ in range(3)) * 1e3
        if best is None or tried[variant] < tried[best[0]]:
            best = variant, prepared
    print(json.dumps({"torch": torch.__version__, "device": device, "variant": best[0], "tried_ms": tried}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": chunk(best[1], int(line), count, device)}), flush=True)


if __name__ == "__main__":
    main()
