"""Forward passes of the foundation networks beside Hugging Face's in torch, in one run: `python scripts/bench_foundation.py sam_vit_b`.

Both sides get the same weights, through the converter's table, and must give the same output; then they are timed in turn, one pass each,
the peer in a process of its own that rests meanwhile. Prints ratios of medians and writes one JSON object a workload: of wall time, and of
processor time (all threads), which other work on the machine disturbs less. A row is written when it is there; rows of other cases stay.
`--set image_size=256 --set depth=3 --set global_blocks=[2]` makes a workload smaller (or another); its row then says so.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody
ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from segjax.nets.mit import Block, MixTransformer  # noqa: E402
from segjax.nets.sam_encoder import ImageEncoder  # noqa: E402
from segjax.verbs import networks  # noqa: E402
from segjax.weights import mit, safetensors_io, sam, walk  # noqa: E402


class Workload(NamedTuple):
    """sizes: defaults of what --set may change. prepare: (sizes, the peer's weights file, its inputs) -> (function of the arguments,
    arguments), whose result is compared with the peer's `out` after `turned`."""

    sizes: dict[str, Any]
    prepare: Callable[[dict, pathlib.Path, dict], tuple[Callable, tuple]]
    turned: Callable[[np.ndarray], np.ndarray]


def sam_encoder(sizes: dict, file: pathlib.Path, inputs: dict) -> tuple[Callable, tuple]:
    """SAM's image encoder, without the decoder."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items() if key != "batch"}
    net = ImageEncoder(**fields)
    image = np.ascontiguousarray(inputs["pixel_values"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(net.init, jax.random.key(0), image)
    like = safetensors_io.flatten({"params": {"image_encoder": shapes["params"]}})
    flat = walk.to_segjax(_tensors(file), sam.BOTH, like, name="SamVisionModel")
    variables = {"params": safetensors_io.unflatten(flat)["params"]["image_encoder"]}
    return net.apply, (variables, image)


def clip_vision(sizes: dict, file: pathlib.Path, inputs: dict) -> tuple[Callable, tuple]:
    """CLIP's vision tower, to the pooled vector."""
    network = networks.load(file)
    image = np.ascontiguousarray(inputs["pixel_values"].transpose(0, 2, 3, 1))
    return lambda variables, x: network.module.apply(variables, x)["pooled"], (network.variables, image)


def unet(sizes: dict, file: pathlib.Path, inputs: dict) -> tuple[Callable, tuple]:
    """Stable Diffusion's UNet, cut to its first levels by `widths`."""
    network = networks.load(file)
    x = np.ascontiguousarray(inputs["sample"].transpose(0, 2, 3, 1))
    time_step = np.full((x.shape[0],), sizes["timestep"], np.int32)
    return network.module.apply, (network.variables, x, time_step, inputs["encoder_hidden_states"])


def _tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors_io.read(file)[0]


VIT_B = {
    "batch": 1,
    "image_size": 1024,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_dim": 3072,
    "global_blocks": [2, 5, 8, 11],
    "window": 14,
}


def mit_gradients(sizes: dict, file: pathlib.Path, inputs: dict) -> tuple[Callable, tuple]:
    """A whole MiT, forward and backward from the sum of the cubes of its stages; see the peer for what it gives."""
    net = MixTransformer(**{key: tuple(sizes[key]) for key in ("dims", "depths")}, block_epsilon=1e-5, drop_path=0.0)
    image = np.ascontiguousarray(inputs["pixel_values"].transpose(0, 2, 3, 1))
    like = safetensors_io.flatten({"params": jax.eval_shape(net.init, jax.random.key(0), image)["params"]})
    weights = _tensors(file)
    flat = walk.to_segjax(weights, mit.MIT_HF.layout(weights), like, name="SegformerModel")
    loss = lambda variables, x: sum((stage**3).sum() for stage in net.apply(variables, x))
    return _gradients(loss), (safetensors_io.unflatten(flat), image)


def mit_block_gradients(sizes: dict, file: pathlib.Path, inputs: dict) -> tuple[Callable, tuple]:
    """The first block of stage 1 by itself, forward and backward."""
    net, tokens = Block(1, 8, 4 * sizes["dim"], 1e-5, 1e-5), inputs["hidden_states"]
    x = tokens.reshape(tokens.shape[0], sizes["height"], sizes["width"], sizes["dim"])
    shapes = jax.eval_shape(lambda key, x: net.init(key, x, 0.0), jax.random.key(0), x)["params"]
    stacked = lambda tree: {k: stacked(v) if isinstance(v, dict) else jax.ShapeDtypeStruct((1, *v.shape), v.dtype) for k, v in tree.items()}
    weights = {f"stages.0.blocks.0.{key}": value for key, value in _tensors(file).items()}
    like = safetensors_io.flatten({"params": {"block1": stacked(shapes)}})
    layout = next(form for form in mit.HF_FORMS if form.name == "mit_hf_memory_bare")
    flat = walk.to_segjax(weights, layout, like, name="SegformerLayer")
    variables = jax.tree.map(lambda leaf: leaf[0], safetensors_io.unflatten(flat)["params"]["block1"])
    loss = lambda variables, x: (net.apply(variables, x, 0.0)[0] ** 3).sum()
    return _gradients(loss), ({"params": variables}, x)


def _gradients(loss: Callable) -> Callable:
    """(variables, x) -> the gradient of x, flat, and at its end the norm of all parameters' gradients, so that none of them is left out."""

    def run(variables, x):
        ours, dx = jax.grad(loss, argnums=(0, 1))(variables, x)
        norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(ours)))
        return jnp.append(dx.ravel() / jnp.abs(dx).max(), norm / (1 + norm))

    return run


MIT_B0 = {"batch": 1, "height": 512, "width": 512, "dims": [32, 64, 160, 256], "depths": [2, 2, 2, 2]}
CLIP_B16 = {"batch": 8, "image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12}
UNET = {"batch": 2, "side": 64, "widths": [320, 640], "heads": 8, "context": 768, "tokens": 77, "timestep": 500}
WORKLOADS = {
    "clip_vit_b16": Workload(CLIP_B16, clip_vision, lambda out: out),
    "sd15_unet_levels": Workload(UNET, unet, lambda out: out.transpose(0, 2, 3, 1)),
    "sam_vit_b": Workload(VIT_B, sam_encoder, lambda out: out.transpose(0, 2, 3, 1)),
    "mit_b0_gradients": Workload(MIT_B0, mit_gradients, lambda out: out),
    "mit_b0_block_gradients": Workload({"batch": 1, "height": 128, "width": 128, "dim": 32}, mit_block_gradients, lambda out: out),
}
"""The one table: a workload of the same name in peers/foundation_torch.py is its yardstick."""


class Peer:
    """The other side's process: `ask()` runs a pass and gives its milliseconds of wall and of processor time."""

    def __init__(self, name: str, sizes: dict, folder: str):
        command = [sys.executable, str(ROOT / "peers" / "foundation_torch.py"), name, json.dumps(sizes), folder]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"bench_foundation: the peer ended with exit code {self.process.wait()} (needs torch and transformers)")
        return line

    def ask(self) -> list[float]:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def end(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def case(name: str, sizes: dict, args) -> dict:
    workload = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(name, sizes, folder)
        arrays = dict(np.load(pathlib.Path(folder) / "arrays.npz"))
        function, arguments = workload.prepare(sizes, pathlib.Path(folder) / "weights.safetensors", arrays)
    arguments = jax.device_put(arguments)
    begun, spent = time.perf_counter(), time.process_time()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s, compile_cpu_s = time.perf_counter() - begun, time.process_time() - spent
    want, got = workload.turned(arrays["out"]), np.asarray(compiled(*arguments), np.float32)
    error = float(np.abs(got - want).max() / np.abs(want).max())
    assert error < 1e-3, f"{name}: outputs differ by {error:.2g} of the largest"
    times: dict[str, list[list[float]]] = {"segjax": [], "torch": []}
    for turn in range(args.repeats + 1):
        begun, spent = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        ours = [(time.perf_counter() - begun) * 1e3, (time.process_time() - spent) * 1e3]
        theirs = peer.ask()
        if turn:  # the first round warms up both
            times["segjax"].append(ours)
            times["torch"].append(theirs)
    peer.end()
    wall, processor = ({side: round(statistics.median(ms[n] for ms in taken), 2) for side, taken in times.items()} for n in (0, 1))
    return {
        "case": f"{name}{'' if name.endswith('gradients') else ' forward'} float32",
        "sizes": sizes,
        "median_ms": wall,
        "times_torch": round(wall["segjax"] / wall["torch"], 3),
        "median_processor_ms": processor,
        "times_torch_processor": round(processor["segjax"] / processor["torch"], 3),
        "output_relative_error": error,
        "compile_s": round(compile_s, 1),
        "compile_processor_s": round(compile_cpu_s, 1),
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another size, for every workload that has the key")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"foundation-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"unknown workload {', '.join(sorted(unknown))}: expected {', '.join(WORKLOADS)}")
    changes = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in args.set)}
    about = {"backend": jax.default_backend(), "repeats": args.repeats, "python": platform.python_version(), "cores": os.cpu_count()}
    about |= {name: version(name) for name in ("jax", "torch", "transformers")}
    args.out.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for name in args.workloads or WORKLOADS:
        sizes = {key: changes.get(key, value) for key, value in WORKLOADS[name].sizes.items()}
        row = case(name, sizes, args) | about
        rows = [*(other for other in rows if other["case"] != row["case"]), row]
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        ms, ratios = row["median_ms"], f"{row['times_torch']}x torch, {row['times_torch_processor']}x its processor time"
        print(f"{row['case']}: {ms['segjax']:.0f} ms, torch {ms['torch']:.0f} ms: {ratios}; compiled in {row['compile_s']} s", flush=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
