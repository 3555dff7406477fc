"""Forms of one operation as a TPU's compiler sees them, without a TPU: its own estimate of cycles, bytes to and from main memory.

    pip install "segjax[tpu]"
    python scripts/tpu_forms.py --topology=v5e:2x2 --out=scripts/results/tpu-forms.jsonl

Stems: a strided convolution over three channels, plain and as space-to-depth with a convolution of stride 1. Depthwise convolutions:
grouped, and as shifted multiply-adds. Estimates rank forms, they are no times (docs/throughput.md).
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.ops import depthwise
from segjax.ops.conv_gradients import lax_conv
from segjax.runtime import hlo, hlo_text, topology

STEMS = {"ResNet": (7, 2, 3, 64), "MiT": (7, 4, 3, 64)}  # kernel, stride, padding, channels
DEPTHWISE = {3: (2, 64, 64, 1280), 7: (2, 64, 64, 384)}  # kernel -> map: MiT-B5's third stage, ConvNeXt's first


def space_to_depth(x, kernel, stride, padding):
    """The same as `lax_conv` at that stride: blocks of stride x stride pixels as channels, the kernel filled up to whole blocks."""
    k, _, channels, features = kernel.shape
    b, (h, w) = x.shape[0], x.shape[1:3]
    blocks = -(-k // stride)
    out = [(size + 2 * padding - k) // stride + 1 for size in (h, w)]
    spare = blocks * stride - k
    kernel = jnp.pad(kernel, ((0, spare), (0, spare), (0, 0), (0, 0))).reshape(blocks, stride, blocks, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(blocks, blocks, -1, features)
    high = [(size + blocks - 1) * stride - own - padding for size, own in zip(out, (h, w), strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (padding, high[0], 0), (padding, high[1], 0), (0, 0, 0)))
    x = x.reshape(b, out[0] + blocks - 1, stride, out[1] + blocks - 1, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, out[0] + blocks - 1, out[1] + blocks - 1, -1)
    return lax_conv(x, kernel, 1, 1, ((0, 0), (0, 0)))


def cases():
    """(name, form, function of a map and a kernel, their shapes)."""
    for name, (k, stride, p, features) in STEMS.items():
        plain = functools.partial(lax_conv, stride=stride, dilation=1, padding=((p, p), (p, p)))
        moved = functools.partial(space_to_depth, stride=stride, padding=p)
        for form, call in (("plain", plain), ("space to depth", moved)):
            yield f"stem of {name}, {k}x{k} / {stride}", form, call, ((2, 512, 1024, 3), (k, k, 3, features))
    for k, shape in DEPTHWISE.items():
        own = dict(stride=1, dilation=1, padding=((k // 2, k // 2),) * 2)
        for form, call in (("grouped", depthwise._grouped), ("shifted", depthwise._shifted)):
            yield f"depthwise {k}x{k}", form, functools.partial(call, **own), (shape, (k, k, 1, shape[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    mesh = Mesh(topology.devices(args.topology)[:1], ("one",))
    placed = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    for name, form, call, shapes in cases():
        x, kernel = map(placed, shapes)
        y = placed(jax.eval_shape(call, x, kernel).shape)
        gradient = lambda x, kernel, dy, f=call: jax.vjp(lambda w: f(x, w), kernel)[1](dy)
        for what, run, given in (("forward", call, (x, kernel)), ("kernel's gradient", gradient, (x, kernel, y))):
            totals = hlo.count(hlo_text.parse(jax.jit(run).lower(*given).compile().as_text() or ""))
            row = {"case": name, "of": what, "form": form, "topology": args.topology, "cycles": totals.cycles, "bytes": totals.bytes}
            print(f"{name:24} {what:18} {form:15} {totals.cycles / 1e3:8,.0f} thousand cycles {totals.bytes / 1e6:6,.0f} MB", flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
