"""Networks at their published sizes, random weights: run one forward here, or compile it for a TPU that is not here.

    python scripts/full_size.py sam_vit_b sd15_unet                    one forward each on this machine's devices
    python scripts/full_size.py sam_vit_b sd15_unet --on=v5e:2x2    compiled by libtpu's compile-only client: does it fit, and how long

The second needs the package libtpu (a wheel without any TPU). One input row a device, bfloat16 compute unless --dtype says otherwise;
parameters are float32, split over "fsdp" with --fsdp. Prints one line and, with --out, appends one JSON object a network.
"""

import argparse
import json
import os
import pathlib
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from segjax.runtime import mesh as meshes
from segjax.runtime.compile import finish
from segjax.verbs import build

NETWORKS = {
    "deeplabv2_r101": ({"make": "segjax.nets.deeplab:DeepLabV2", "num_classes": 19}, [((512, 1024, 3), "float32")]),
    "sam_vit_b": ({"make": "segjax.nets.sam_encoder:ImageEncoder"}, [((1024, 1024, 3), "float32")]),
    "sd15_unet": ({"make": "segjax.nets.unet:UNet"}, [((64, 64, 4), "float32"), ((), "int32"), ((77, 768), "float32")]),
}
"""Name -> what builds the module, and each argument's shape without its batch axis and its type."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--on", default="", metavar="TOPOLOGY", help="v5e:2x2, v6e:16x16, ...: compile for it; default: run here")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    for name in args.networks:
        row = measure(name, args)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if args.out:
            with open(args.out, "a") as file:
                file.write(json.dumps(row) + "\n")


def measure(name: str, args: argparse.Namespace) -> dict:
    """One network's row."""
    spec, arguments = NETWORKS[name]
    module = build.resolve({**spec, "dtype": jnp.dtype(args.dtype)}, name)
    mesh = meshes.make_mesh(fsdp=args.fsdp, devices=_devices(args.on))
    rows = [jax.ShapeDtypeStruct((mesh.size, *shape), kind, sharding=meshes.batch_sharding(mesh)) for shape, kind in arguments]
    variables = jax.eval_shape(lambda key, *rows: module.init(key, *rows), jax.random.key(0), *rows)
    variables = meshes.with_shardings(variables, meshes.shard_rules(variables, mesh))
    begun = time.monotonic()
    with jax.set_mesh(mesh):
        traced = jax.jit(lambda variables, *rows: module.apply(variables, *rows)).trace(variables, *rows)
        compiled, report = finish(traced, begun, mesh)
    row = {
        "network": name,
        "on": args.on or jax.devices()[0].device_kind,
        "devices": mesh.size,
        "fsdp": args.fsdp,
        "dtype": args.dtype,
        "parameters": int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))),
        "gflop_a_row": round(report.flops / 1e9 / mesh.size, 1),
        "argument_mb_a_device": round(report.argument_bytes / 1e6, 1),
        "temporary_mb_a_device": round(report.temp_bytes / 1e6, 1),
        "trace_seconds": round(report.trace_seconds, 1),
        "compile_seconds": round(report.compile_seconds, 1),
        "jax": jax.__version__,
    }
    return row if args.on else row | _forward(module, compiled, variables, rows)


def _devices(topology: str) -> list:
    if not topology:
        return jax.devices()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform="tpu").devices)
    except Exception as error:  # libtpu raises whatever it likes for a name that it does not know, and JAX for a libtpu that is not there
        sys.exit(f"--on={topology}: {str(error).splitlines()[0]}: pip install libtpu, and name a slice like v5e:2x2 or v6e:16x16")


def _forward(module, compiled, variables, rows) -> dict:
    """Seconds of one forward on random weights and inputs, the fastest of three; the outputs are finite."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jax.device_put(
        rng.integers(0, 1000, leaf.shape).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.integer)
        else rng.random(leaf.shape, np.float32),
        leaf.sharding,
    )
    weights = jax.tree.map(lambda leaf: jax.device_put(0.05 * rng.standard_normal(leaf.shape, np.float32), leaf.sharding), variables)
    weights = flax.core.unfreeze(weights)
    inputs = [draw(row) for row in rows]
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        outputs = jax.block_until_ready(compiled(weights, *inputs))
        seconds.append(time.monotonic() - begun)
    if not all(bool(jnp.isfinite(leaf.astype(jnp.float32)).all()) for leaf in jax.tree.leaves(outputs)):
        sys.exit("the forward gave a value that is not finite")
    return {"forward_seconds": round(min(seconds), 2)}


if __name__ == "__main__":
    main()
