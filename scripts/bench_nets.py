"""Train steps beside torch eager, in one run: `python scripts/bench_nets.py [--cases enet deeplab_r101] [--out=FILE.jsonl]`.

ENet (batch 8 of 256x192) and DeepLabV2-R101 (batch 1 of 128x256), float32, forward, backward and optimizer, through the step that
`segjax train` compiles. First both sides get the same weights and must give the same logits; then they are timed in turn. Prints
ratios of medians and writes one JSON object a case.
"""

import argparse
import json
import os
import pathlib
import platform

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_ops import ROOT, alternate, temporary_mb  # noqa: E402
from peers import deeplab_torch, enet_torch  # noqa: E402

from segjax.methods import source_only  # noqa: E402
from segjax.nets.deeplab import CAFFE_MEAN_BGR, DeepLabV2  # noqa: E402
from segjax.nets.enet import ENet  # noqa: E402
from segjax.runtime import mesh as meshes  # noqa: E402
from segjax.runtime.compile import compile_step  # noqa: E402
from segjax.runtime.optim import make_optimizer  # noqa: E402
from segjax.weights import safetensors_io, walk  # noqa: E402
from segjax.weights.enet import ENET_PYTORCH  # noqa: E402
from segjax.weights.resnet import DEEPLABV2_RESNET  # noqa: E402

CASES = {
    "enet": (ENet(19), ENET_PYTORCH, enet_torch, dict(name="adam", lr=5e-4), (8, 256, 192)),
    "deeplab_r101": (DeepLabV2(19), DEEPLABV2_RESNET, deeplab_torch, dict(name="sgd", lr=2.5e-4, weight_decay=5e-4), (1, 128, 256)),
}


def same_logits(model, layout, net, image: np.ndarray, variables) -> float:
    """Largest relative difference between torch's evaluation logits and ours on torch's weights."""
    with torch.no_grad():
        want = net.eval()(torch_image(model, image)).permute(0, 2, 3, 1).numpy()
    net.train()
    logits = jax.jit(lambda v, x: model.apply(v, x)["logits"])(variables, image.astype(np.float32) / 255)
    return float(np.abs(np.asarray(logits) - want).max() / np.abs(want).max())


def torch_image(model, image: np.ndarray) -> torch.Tensor:
    x = image.astype(np.float32) / 255
    if isinstance(model, DeepLabV2):
        x = x[..., ::-1] * 255 - np.asarray(CAFFE_MEAN_BGR, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def case(name: str, args) -> dict:
    model, public, peer, settings, (b, h, w) = CASES[name]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (b, h, w, 3)).astype(np.uint8)
    label = rng.integers(0, 20, (b, h, w))
    label = np.where(label == 19, 255, label).astype(np.uint8)
    torch.manual_seed(0)
    net, torch_step = peer.make()
    source = {key: value.numpy() for key, value in net.state_dict().items()}
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    flat = walk.to_segjax(source, public.layout(source), safetensors_io.flatten(like), name=name)
    variables = safetensors_io.unflatten(flat)
    error = same_logits(model, public, net, image, variables)
    assert error < 1e-4, f"{name}: logits differ by {error}"

    method = source_only.make(model=model, optimizer=make_optimizer(**settings, schedule="poly", total_steps=10**6))
    mesh = meshes.make_mesh(1)
    batch = {"source_image": image, "source_label": label}
    state = jax.jit(method.init)(jax.random.key(0), batch).with_variables(variables)
    state = jax.tree.map(jnp.copy, state)
    spec = meshes.with_shardings(jax.eval_shape(lambda: state), jax.tree.map(lambda _: meshes.replicated(mesh), state))
    compiled, report = compile_step(method, spec, (), meshes.batch_spec(batch, mesh), mesh)
    on_device = meshes.put_batch(batch, mesh)
    held = {"state": jax.device_put(state, meshes.replicated(mesh))}

    def ours():
        held["state"], metrics = compiled(held["state"], (), on_device)
        return metrics["loss/ce"]

    tensors = torch_image(model, image), torch.from_numpy(label.astype(np.int64))
    forms = {"segjax": (ours, jax.block_until_ready), "torch": (lambda: torch_step(*tensors), lambda _: None)}
    ms = alternate(forms, args.repeats, 1)
    return {
        "case": f"{name} train step {b}x{h}x{w} float32",
        "median_ms": ms,
        "times_torch": round(ms["segjax"] / ms["torch"], 3),
        "logits_relative_error": error,
        "compile_s": round(report.compile_seconds, 1),
        "temporary_mb": temporary_mb(compiled),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"nets-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    versions = {"jax": jax.__version__, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    rows = []
    for name in args.cases:
        rows.append(case(name, args) | {"backend": jax.default_backend(), "repeats": args.repeats, **versions})
        row = rows[-1]
        ms, ratio = row["median_ms"], row["times_torch"]
        print(f"{row['case']}: segjax {ms['segjax']:.0f} ms, torch {ms['torch']:.0f} ms: {ratio}x torch")
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
