"""FDA and the fused cross-entropy beside plain forms of them, in one run: `python scripts/bench_ops.py [--out=FILE.jsonl]`.

Each case first checks that all forms agree, then times them in turn (A, B, C, A, B, C, ...), so that a busy minute hits all alike.
Prints ratios of medians and writes one JSON object a case. Peers whose library is absent are left out and named.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody
ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from peers import cross_entropy_naive, fda_numpy  # noqa: E402

from segjax.ops import fourier, pixel_losses  # noqa: E402

try:
    import torch
    from peers import fda_torch
except ImportError:
    torch = None


def alternate(forms: dict, repeats: int, calls: int) -> dict[str, float]:
    """Median milliseconds a call of each form; one untimed round first."""
    times = {name: [] for name in forms}
    for i in range(repeats + 1):
        for name, (call, wait) in forms.items():
            start = time.perf_counter()
            for _ in range(calls):
                out = call()
            wait(out)
            if i:
                times[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def temporary_mb(compiled) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def fda(beta: float, args) -> dict:
    rng = np.random.default_rng(0)
    # a photograph's spectrum falls off with frequency: smooth fields plus noise, in 0..255
    ramp = np.cumsum(np.cumsum(rng.normal(size=(2, 2, 3, 512, 1024)), -1), -2)
    ramp = (ramp - ramp.min()) / np.ptp(ramp) * 225 + rng.random(ramp.shape) * 30
    source, target = ramp.astype(np.float32)
    nhwc = [jax.device_put(np.ascontiguousarray(x.transpose(0, 2, 3, 1))) for x in (source, target)]
    compiled = {
        name: jax.jit(functools.partial(fourier.amplitude_transfer, beta=beta, form=name)).lower(*nhwc).compile()
        for name in ("auto", "banded", "fft")
    }
    forms = {name: (functools.partial(call, *nhwc), jax.block_until_ready) for name, call in compiled.items()}
    results = {name: np.asarray(call(*nhwc)).transpose(0, 3, 1, 2) for name, call in compiled.items()}
    exact = fda_numpy.amplitude_transfer(source.astype(np.float64), target.astype(np.float64), beta)
    if not args.no_numpy:
        forms["numpy"] = (lambda: fda_numpy.amplitude_transfer(source, target, beta), lambda _: None)
    if torch is not None:
        on_gpu = jax.default_backend() == "gpu"
        tensors = [torch.from_numpy(x).to("cuda" if on_gpu else "cpu") for x in (source, target)]
        forms["torch"] = (
            lambda: fda_torch.amplitude_transfer(*tensors, beta),
            lambda _: torch.cuda.synchronize() if on_gpu else None,
        )
        results["torch"] = fda_torch.amplitude_transfer(*tensors, beta).cpu().numpy()
    errors = {name: float(np.abs(out - exact).max()) for name, out in results.items()}
    for name, error in errors.items():
        assert error < 2e-5 * np.abs(exact).max(), f"{name} is {error} away from float64 numpy"
    return {
        "case": f"fda 2x512x1024x3 beta {beta}",
        "median_ms": alternate(forms, args.repeats, args.calls),
        "temporary_mb": {name: temporary_mb(call) for name, call in compiled.items()},
        "max_error_of_255": errors,
    }


def cross_entropy(args) -> dict:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(2, 64, 128, 19)), jnp.float32)
    label = rng.integers(0, 20, (2, 512, 1024))
    label = jnp.asarray(np.where(label == 19, 255, label), jnp.uint8)

    def fused(logits, label):
        total, count = pixel_losses.upsampled_cross_entropy(logits, label)
        return total / count

    losses = {"fused": fused, "naive": cross_entropy_naive.upsampled_cross_entropy}
    compiled = {name: jax.jit(jax.value_and_grad(loss)).lower(logits, label).compile() for name, loss in losses.items()}
    (value, gradient), (want, want_gradient) = (call(logits, label) for call in compiled.values())
    errors = {
        "value": abs(float(value - want)) / float(want),
        "gradient": float(jnp.abs(gradient - want_gradient).max() / jnp.abs(want_gradient).max()),
    }
    assert max(errors.values()) < 1e-5, errors
    forms = {name: (functools.partial(call, logits, label), jax.block_until_ready) for name, call in compiled.items()}
    return {
        "case": "up-sampling x8 + cross-entropy 2x512x1024x19, value and gradient",
        "median_ms": alternate(forms, args.repeats, args.calls),
        "temporary_mb": {name: temporary_mb(call) for name, call in compiled.items()},
        "relative_error": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--betas", type=float, nargs="*", default=[0.01, 0.05, 0.09])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1, help="calls between two looks at the clock (20 on an accelerator)")
    parser.add_argument("--no-numpy", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=None)
    args = parser.parse_args()
    backend = jax.default_backend()
    out = args.out or ROOT / "results" / f"ops-{backend}.jsonl"
    versions = {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()}
    if torch is None:
        print("torch is not installed: its column is left out")
    else:
        versions["torch"] = torch.__version__
    rows = []
    for case in (*(functools.partial(fda, beta) for beta in args.betas), cross_entropy):
        row = case(args) | {
            "backend": backend,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "repeats": args.repeats,
            **versions,
        }
        ours = row["median_ms"]["auto" if "auto" in row["median_ms"] else "fused"]
        row["times_ours"] = {name: round(ms / ours, 2) for name, ms in row["median_ms"].items()}
        rows.append(row)
        print(row["case"])
        for name, ms in row["median_ms"].items():
            memory = f"{row['temporary_mb'][name]:8.1f} MB temporary" if name in row["temporary_mb"] else ""
            print(f"  {name:8} {ms:9.2f} ms  {row['times_ours'][name]:7.2f}x {memory}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
