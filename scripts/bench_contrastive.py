"""The contrastive loss in blocks beside the dense form, in one run: `python scripts/bench_contrastive.py [--out=FILE.jsonl]`.

Value and gradient of N anchors against N keys of D numbers, both forms of the loss. Each case first checks that all agree, then times
them in turn. Where all similarities at once would not fit a usual memory (32,768: 4 GB each array of them) the dense form is compiled for
its temporary memory and not run, and the gradient of the first anchors is checked against them alone.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from bench_ops import ROOT, alternate, temporary_mb, torch  # noqa: E402
from peers import contrastive_dense  # noqa: E402

from segjax.ops.contrastive import FORMS, supervised_contrastive  # noqa: E402

if torch is not None:
    from peers import contrastive_torch

CLASSES, TEMPERATURE = 19, 0.07
LARGEST_DENSE = 8192


def pixels(n: int, dims: int) -> tuple:
    """Two views of n pixels that training has begun to sort by class; frequent and rare classes, and 5 % without a label."""
    rng = np.random.default_rng(0)
    often = 0.8 ** np.arange(CLASSES)
    label = rng.choice(CLASSES, n, p=often / often.sum())
    centre = rng.normal(size=(CLASSES, dims))[label]
    views = [centre + 1.5 * rng.normal(size=centre.shape) for _ in range(2)]
    views = [jnp.asarray(view / np.linalg.norm(view, axis=1, keepdims=True), jnp.float32) for view in views]
    label = jnp.asarray(np.where(rng.random(n) < 0.05, 255, label), jnp.uint8)
    return *views, label, label


def blocks(*inputs, form: str):
    total, count = supervised_contrastive(*inputs, num_classes=CLASSES, temperature=TEMPERATURE, form=form)
    return total / count


def difference(got, want) -> float:
    """Largest relative to the largest there is, over value and gradients."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()) for a, b in pairs)


def case(n: int, dims: int, form: str, args) -> dict:
    inputs = pixels(n, dims)
    functions = {
        "blocks": functools.partial(blocks, form=form),
        "dense": functools.partial(contrastive_dense.supervised_contrastive, temperature=TEMPERATURE, form=form),
    }
    compiled = {name: jax.jit(jax.value_and_grad(f, (0, 1))).lower(*inputs).compile() for name, f in functions.items()}
    calls = {name: functools.partial(call, *inputs) for name, call in compiled.items()}
    forms = {name: (call, jax.block_until_ready) for name, call in calls.items()}
    errors = {}
    ours = calls["blocks"]()
    if n > LARGEST_DENSE:
        del forms["dense"]
        few = 512
        few_inputs = (inputs[0][:few], inputs[1], inputs[2][:few], inputs[3])
        want = jax.grad(functions["dense"])(*few_inputs) * (inputs[2][:few] != 255).sum() / (inputs[2] != 255).sum()
        errors["first anchors"] = difference(ours[1][0][:few], want)
    else:
        errors["dense"] = difference(ours, calls["dense"]())
        if torch is not None:
            device = "cuda" if jax.default_backend() == "gpu" else "cpu"
            tensors = [torch.from_numpy(np.array(x)).to(device) for x in inputs]
            peer = functools.partial(contrastive_torch.value_and_grad, *tensors, temperature=TEMPERATURE, form=form)
            forms["torch"] = (peer, lambda _: torch.cuda.synchronize() if device == "cuda" else None)
            value, slopes = peer()
            errors["torch"] = difference(ours, (value.cpu(), tuple(x.cpu() for x in slopes)))
    assert max(errors.values()) < 1e-5, errors
    median = alternate(forms, args.repeats if n <= LARGEST_DENSE else 1, args.calls)
    return {
        "case": f"contrastive {form}, {n} x {n} of {dims}, value and gradient",
        "median_ms": median,
        "times_ours": {name: round(ms / median["blocks"], 2) for name, ms in median.items()},
        "temporary_mb": {name: temporary_mb(call) for name, call in compiled.items()},
        "relative_error": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2048, 8192, 32768])
    parser.add_argument("--dims", type=int, nargs="*", default=[19, 64])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1, help="calls between two looks at the clock (20 on an accelerator)")
    parser.add_argument("--out", type=pathlib.Path, default=None)
    args = parser.parse_args()
    backend = jax.default_backend()
    out = args.out or ROOT / "results" / f"contrastive-{backend}.jsonl"
    about = {"backend": backend, "device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "repeats": args.repeats}
    about |= {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()}
    if torch is None:
        print("torch is not installed: its column is left out")
    else:
        about["torch"] = torch.__version__
    rows = []
    for n, dims, form in itertools.product(args.sizes, args.dims, FORMS):
        row = case(n, dims, form, args) | about
        rows.append(row)
        print(row["case"], flush=True)
        for name in row["temporary_mb"] | row["median_ms"]:
            time = f"{row['median_ms'][name]:9.1f} ms {row['times_ours'][name]:6.2f}x" if name in row["median_ms"] else f"{'not run':>20}"
            memory = f"{row['temporary_mb'][name]:9.1f} MB temporary" if name in row["temporary_mb"] else ""
            print(f"  {name:8} {time} {memory}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
