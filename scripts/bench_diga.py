"""What DiGA's steps cost beside plain training: `python scripts/bench_diga.py [--config=FILE.py:ARG] [--stages ...] [--out=FILE.jsonl]`.

The training steps of stages of a config, as `segjax train` compiles them, on one made-up batch of their size; the others are compared
with the first. First the numbers: on a small network without dropout, with two equal views, the methods' cross-entropy and distillation
must be those of plain code. Then the stages are timed in turn. A step's time over the first one's stands beside its products and
convolutions over the first one's (counted in the compiled program, loops times their length): 1.0 is what the network's passes alone
would cost. One JSON object a stage.
"""

import argparse
import json
import os
import pathlib
import platform

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from bench_ops import ROOT, alternate, temporary_mb

from segjax.methods import diga_selftrain, diga_warmup
from segjax.nets.apply import to_float
from segjax.nets.layers import BatchNorm, Conv
from segjax.ops.resize import bilinear
from segjax.runtime import allocator, compile, hlo, hlo_text
from segjax.runtime import mesh as meshes
from segjax.runtime.optim import make_optimizer
from segjax.verbs import build, config_file, variables

STAGES = ("source_only", "warmup", "selftrain")


class Small(nn.Module):
    """Two convolutions and a BatchNorm at stride 2."""

    num_classes: int = 5
    align_corners: bool = True

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(BatchNorm(name="norm")(Conv(16, (3, 3), 2, name="conv")(image), train))
        return {"logits": Conv(self.num_classes, (1, 1), name="last")(x), "features": x}


def made_up(size: tuple[int, int], count: int, classes: int) -> dict[str, np.ndarray]:
    """Blocks of colour with labels that follow them, and a darker target with offline labels; 255 in a border."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, (count, -(-size[0] // 16), -(-size[1] // 16))).repeat(16, 1).repeat(16, 2)[:, : size[0], : size[1]]
    image = (label[..., None] * (200 // classes) + rng.integers(0, 50, (count, *size, 3))).astype(np.uint8)
    label = label.astype(np.uint8)
    label[:, :4] = 255
    dark = (image[::-1] // 2 + 20).astype(np.uint8)
    return {"source_image": image, "source_label": label, "target_image": dark, "target_label": label[::-1].copy()}


def check() -> dict[str, float]:
    """Relative differences of both methods' losses from plain code's, at the first step, where the teacher is the student."""
    model, batch, errors = Small(), made_up((32, 48), 4, 5), {}
    frozen = {"centroids": {"centroids": jnp.ones((5, 16)), "counts": jnp.ones(5)}}
    optimizer = make_optimizer(name="sgd", lr=0.1, schedule="constant")
    options = dict(model=model, optimizer=optimizer, second_view="photometric", view_share=0.0, mean_over="valid", distill_weight=1.0)
    for name, make in (("warmup", diga_warmup.make), ("selftrain", diga_selftrain.make)):
        method = make(**options)
        state = jax.jit(method.init)(jax.random.key(0), batch)
        _, metrics = jax.jit(method.step)(state, frozen, batch)
        held = {"params": state.params, "batch_stats": state.batch_stats}
        image, label = to_float(batch["source_image"]), batch["source_label"]
        student = model.apply(held, image, train=True, mutable=["batch_stats"])[0]["logits"]
        teacher = model.apply(held, image, train=False)["logits"]
        full = [np.asarray(jax.nn.log_softmax(bilinear(x, label.shape[1:], align_corners=True))) for x in (student, teacher)]
        chosen = np.take_along_axis(full[0], np.minimum(label, 4)[..., None].astype(int), -1)[..., 0][label < 5]
        plain = {"loss/ce": -chosen.mean(), "loss/distill": -1.5 * np.mean(np.sum(np.exp(full[1]) * full[0], -1))}
        errors |= {f"{name} {key}": abs(float(metrics[key]) - float(value)) / float(value) for key, value in plain.items()}
    assert max(errors.values()) < 1e-4, errors
    return errors


def frozen_of(stage: build.Stage, batch: dict) -> dict:
    """Class centroids where the stage reads them. Translators are not made up: time with translator=fda or identity."""
    state = jax.eval_shape(stage.method.init, jax.random.key(0), batch)
    if not stage.spec["frozen"]:
        return ()
    assert list(stage.spec["frozen"]) == ["centroids"], f"{stage.name} reads {', '.join(stage.spec['frozen'])}: only centroids are made up"
    rng, (classes, width) = np.random.default_rng(1), state.centroids.shape
    return {"centroids": {"centroids": rng.normal(size=(classes, width)).astype(np.float32), "counts": np.ones(classes, np.float32)}}


def compiled_stage(config, name: str, mesh) -> tuple[dict, callable]:
    """(what is known of the stage's step, a call that takes one)."""
    stage = build.stage(config, name)
    data, every = stage.spec["data"], made_up(stage.spec["data"]["crop"], stage.spec["batch_size"], stage.model.num_classes)
    roles = ["source", *(["target_image"] if data.get("target") else []), *(["target_label"] if data.get("target_labels") else [])]
    batch = {key: value for key, value in every.items() if key.startswith(tuple(roles))}
    abstract = jax.eval_shape(stage.method.init, jax.random.key(0), batch)
    state = jax.jit(stage.method.init, out_shardings=meshes.shard_rules(abstract, mesh))(jax.random.key(0), batch)
    given = frozen_of(stage, batch)
    given = jax.device_put(given, meshes.shard_rules(given, mesh))
    spec, frozen_spec = meshes.with_shardings((state, given), jax.tree.map(lambda leaf: leaf.sharding, (state, given)))
    compiled, report = compile.compile_step(stage.method, spec, frozen_spec, meshes.batch_spec(batch, mesh), mesh)
    held, batch = {"state": state}, meshes.put_batch(batch, mesh)

    def step():
        held["state"], metrics = compiled(held["state"], given, batch)
        return metrics["loss/ce"]

    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables.shapes(stage.model)["params"]))
    shape = "x".join(map(str, (stage.spec["batch_size"], *data["crop"])))
    about = {"stage": name, "network": type(stage.model).__name__, "parameters": parameters, "batch": shape}
    about |= {"gflop": hlo.count(hlo_text.parse(compiled.as_text())).flops / 1e9, "temporary_mb": round(temporary_mb(compiled), 1)}
    return about | {"compile_s": round(report.compile_seconds, 1)}, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT.parent / "configs/diga.py") + ":camvid_day_dusk", metavar="FILE.py[:ARG]")
    parser.add_argument("--stages", nargs="+", default=STAGES, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"diga-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    allocator.keep_pages()  # as `segjax train` does
    compile.enable_cache()
    errors, config, mesh = check(), config_file.load(args.config), meshes.make_mesh(1)
    print(f"the methods agree with plain code to {max(errors.values()):.1e}")
    found, forms = {}, {}
    for name in args.stages:
        found[name], step = compiled_stage(config, name, mesh)
        forms[name] = (step, jax.block_until_ready)
    ms, first, rows = alternate(forms, args.repeats, 1), args.stages[0], []
    versions = {"jax": jax.__version__, "python": platform.python_version(), "cores": os.cpu_count(), "backend": jax.default_backend()}
    for name, about in found.items():
        time, work = ms[name] / ms[first], about["gflop"] / found[first]["gflop"]
        about = about | {"gflop": round(about["gflop"], 2), "median_ms": round(ms[name], 1), "times": round(time, 3)}
        rows.append(about | {"times_gflop": round(work, 3), "time_over_gflop": round(time / work, 3), "repeats": args.repeats} | versions)
        ratios = f"{time:.2f} times {first}'s at {work:.2f} times its products: {time / work:.2f}"
        print(f"{name} {about['batch']}: {ms[name]:.0f} ms, {ratios}; {about['temporary_mb']} MB temporary")
    args.out.write_text("".join(json.dumps(row | {"relative_error": max(errors.values())}) + "\n" for row in rows))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
