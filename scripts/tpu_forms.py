"""Forms of one operation as a TPU's compiler sees them, without a TPU: its own estimate of cycles, bytes to and from main memory.

    pip install "segjax[tpu]"
    python scripts/tpu_forms.py --topology=v5e:2x2 --out=scripts/results/tpu-forms.jsonl

Stems: a strided convolution over three channels, plain and as space-to-depth with a convolution of stride 1. Convolutions of stride 1:
plain, and with columns for a batch; depthwise ones grouped, and as shifts but for the kernel's gradient. Four of these in a scan, forward
and backward, since alone they would pay for the layouts of arguments. Attention to whole maps, likewise: jax's, and ours, which takes
blocks of queries where all logits would leave vector memory. SAM's attention, four layers forward: relative positions added to the logits,
or beside queries and keys. Estimates rank forms, they are no times (docs/throughput.md).
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segjax.ops import attention, conv_columns, depthwise
from segjax.ops import relative_attention as relative
from segjax.ops.conv import same_padding
from segjax.ops.conv_gradients import lax_conv
from segjax.runtime import hlo, hlo_text, topology

STEMS = {"ResNet": (7, 2, 3, 64), "MiT": (7, 4, 3, 64)}  # kernel, stride, padding, channels
DENSE = {  # name -> map, kernel, dilation
    "DeepLabV2, layer1": ((2, 129, 257, 64), (3, 3), 1),
    "DeepLabV2, layer3": ((2, 65, 129, 256), (3, 3), 2),
    "DeepLabV2, layer3, 8 images": ((8, 65, 129, 256), (3, 3), 2),
    "DeepLabV2, layer3, 32 images": ((32, 65, 129, 256), (3, 3), 2),
    "DeepLabV2, layer4": ((2, 65, 129, 512), (3, 3), 4),
    "VGG16, block 1": ((2, 512, 1024, 64), (3, 3), 1),
    "ENet, dilated": ((2, 64, 128, 32), (3, 3), 8),
    "ENet, one row": ((2, 64, 128, 32), (1, 5), 1),
    "ENet, one column": ((2, 64, 128, 32), (5, 1), 1),
    "DAFormer's head": ((2, 128, 128, 256), (3, 3), 6),
    "pixel decoder": ((2, 192, 192, 256), (3, 3), 1),
    "SAM's neck": ((1, 64, 64, 256), (3, 3), 1),
    "UNet, 64 x 64": ((1, 64, 64, 320), (3, 3), 1),
    "UNet, 8 x 8": ((1, 8, 8, 1280), (3, 3), 1),
    "VAE, 512 x 512": ((1, 512, 512, 128), (3, 3), 1),
}
DEPTHWISE = {  # name -> map, kernel
    "MiT, stage 1": ((2, 128, 128, 256), 3),
    "MiT, stage 3": ((2, 32, 32, 1280), 3),
    "MiT, stage 4": ((2, 16, 16, 2048), 3),
    "ConvNeXt, stage 1": ((2, 192, 192, 192), 7),
}
ATTENTION = {  # name -> images, queries, keys, heads, channels of a head
    "UNet's attention, 64 x 64": (1, 4096, 4096, 8, 40),
    "UNet's attention, 48 x 48": (1, 2304, 2304, 8, 40),
    "UNet's attention, 32 x 32": (1, 1024, 1024, 8, 80),
    "MiT's attention, stage 1": (4, 16384, 256, 1, 64),
    "MiT's attention, stage 1, 10 images": (10, 16384, 256, 1, 64),
}
SAM = {"SAM ViT-H, global": (1, 64, 64, 16, 80), "SAM ViT-H, windows": (25, 14, 14, 16, 80)}  # images or windows, tokens, heads
DEPTH = 4  # layers in a scan


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


def stems():
    """(name, form, function of a map and a kernel, their shapes)."""
    for name, (k, stride, p, features) in STEMS.items():
        plain = functools.partial(lax_conv, stride=stride, dilation=1, padding=((p, p), (p, p)))
        moved = functools.partial(space_to_depth, stride=stride, padding=p)
        for form, call in (("plain", plain), ("space to depth", moved)):
            yield f"stem of {name}, {k}x{k} / {stride}", form, call, ((2, 512, 1024, 3), (k, k, 3, features))


def layers():
    """(name, form, gradient of a scan of convolutions, their shapes)."""
    for name, (shape, size, dilation) in DENSE.items():
        own = dict(dilation=dilation, padding=same_padding(size, dilation))
        columns = with_gradients(conv_columns.columns_conv, conv_columns.columns_gradients, own)
        shapes = shape, (DEPTH, *size, shape[-1], shape[-1])
        yield name, "plain", gradient(functools.partial(lax_conv, stride=1, **own)), shapes
        yield name, "columns", gradient(columns), shapes
    for name, (shape, k) in DEPTHWISE.items():
        own = dict(stride=1, dilation=1, padding=same_padding((k, k)))
        shifts = with_gradients(depthwise._shifted, depthwise._mixed_gradients, own)
        shapes = shape, (DEPTH, k, k, 1, shape[-1])
        yield f"{name}, {k}x{k}", "grouped", gradient(functools.partial(depthwise._grouped, **own)), shapes
        yield f"{name}, {k}x{k}", "shifts", gradient(shifts), shapes


def attentions():
    """(name, form, gradient of a scan of attentions, the shapes of a map and of the layers' matrices)."""
    for name, (b, n, m, heads, d) in ATTENTION.items():
        for form, call in (("plain", jax.nn.dot_product_attention), ("ours", attention.attention)):
            layer = lambda x, kernel, call=call, m=m: call(x, x[:, :m] @ kernel, x[:, :m])
            yield name, form, gradient(layer), ((b, n, heads, d), (DEPTH, d, d))


def sam_attentions():
    """(name, form, a scan of attentions, the shapes of its queries, which are keys and values too, and of its relative vectors)."""
    for name, (b, h, w, n, d) in SAM.items():
        blocks = (512, relative.BLOCK_TPU) if h * w > relative.AT_ONCE else (relative.AT_ONCE,)
        for block, joined in [(block, False) for block in blocks] + [(blocks[-1], True)]:
            layer = functools.partial(relative._in_blocks, block=block, joined=joined)

            def call(x, rows, columns, layer=layer):
                return lax.scan(lambda x, tables: (layer(x, x, x, *tables), None), x, (rows, columns))[0]

            form = f"{'joined' if joined else 'added'}, {min(block, h * w)} queries"
            yield name, form, call, ((b, h, w, n, d), (DEPTH, h, h, d), (DEPTH, w, w, d))


def with_gradients(forward, backward, options):
    call = jax.custom_vjp(lambda x, kernel: forward(x, kernel, **options))
    call.defvjp(lambda *given: (call(*given), given), lambda saved, dy: backward(*saved, dy, **options))
    return call


def gradient(call):
    """Of a scan of `DEPTH` layers, by the image and the kernels."""

    def loss(x, kernels):
        y, _ = lax.scan(lambda x, kernel: (jax.nn.relu(call(x, kernel)), None), x, kernels)
        return jnp.square(y.astype(jnp.float32)).mean()

    return jax.grad(loss, argnums=(0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    mesh = Mesh(topology.devices(args.topology)[:1], ("one",))
    placed = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    chosen = lambda given: (case for case in given if not args.only or args.only in case[0])
    for name, form, call, shapes in chosen(stems()):
        x, kernel = map(placed, shapes)
        y = placed(jax.eval_shape(call, x, kernel).shape)
        backward = lambda x, kernel, dy, f=call: jax.vjp(lambda w: f(x, w), kernel)[1](dy)
        for what, run, given in (("forward", call, (x, kernel)), ("kernel's gradient", backward, (x, kernel, y))):
            tell(args, name, what, form, run, given)
    for name, form, call, shapes in chosen((*layers(), *attentions())):
        tell(args, name, "a layer, forward and backward", form, call, tuple(map(placed, shapes)), DEPTH)
    for name, form, call, shapes in chosen(sam_attentions()):
        tell(args, name, "a layer, forward", form, call, tuple(map(placed, shapes)), DEPTH)


def tell(args, case, what, form, run, given, layers=1) -> None:
    """Compiles, prints and appends one row; cycles and bytes by layer, processor seconds of the whole compilation."""
    start = time.process_time()
    compiled = jax.jit(run).lower(*given).compile()
    seconds = time.process_time() - start
    totals = hlo.count(hlo_text.parse(compiled.as_text() or ""))
    cycles, moved = totals.cycles / layers, totals.bytes / layers
    row = {
        "case": case,
        "of": what,
        "form": form,
        "topology": args.topology,
        "cycles": cycles,
        "bytes": moved,
        "compile_cpu_seconds": seconds,
    }
    print(f"{case:28} {what:30} {form:15} {cycles / 1e3:8,.0f} thousand cycles {moved / 1e6:6,.0f} MB {seconds:5.1f} CPU-s", flush=True)
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
