"""Refinement of pseudo-labels in one compiled call beside the original's host loops, in one run: `python scripts/bench_refine.py`.

Eight images of 768 x 768 (procedural street scenes with their labels), a MobileSAM of full size with random weights, float32. Both sides
use the same network, compiled: one is `nets.label_refiner.refine_labels`, images, classes and components together; the other
(scripts/peers/refine_host.py) takes an image at a time, numpy and scipy between encoder, decoder and masks, decoder and enlargement
compiled for the number of prompts that each image has. Compilation is timed by itself: the loops pay it again for every new number of
prompts, the one call never. Also with the images' features kept from before. Random points are drawn by each side, so the masks are
compared in tests/nets/test_label_refiner.py and not here; the numbers of prompts must agree.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from importlib.metadata import version

ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from peers import refine_host  # noqa: E402

from segjax.data.procedural import StreetScenes  # noqa: E402
from segjax.nets import label_refiner  # noqa: E402
from segjax.nets.mobile_sam import MobileSam  # noqa: E402
from segjax.ops import prompts  # noqa: E402
from segjax.ops.resize import bilinear  # noqa: E402
from segjax.verbs import variables as shapes_of  # noqa: E402

CLASSES, MIN_AREA, POINTS = 19, 5000, 5


def random_variables(net) -> dict:
    """Weights as random as they come, scaled so that activations stay finite."""
    rng = np.random.default_rng(0)
    fill = lambda shape: jnp.asarray(rng.standard_normal(shape.shape) / np.sqrt(max(np.prod(shape.shape[:-1]), 1)), shape.dtype)
    found = jax.tree.map(fill, dict(shapes_of.shapes(net)))
    return jax.tree_util.tree_map_with_path(lambda path, x: jnp.ones_like(x) if "var" in str(path[-1]) else x, found)


class Timer:
    """Wall and processor seconds of calls, and the same of the compilations before them."""

    def __init__(self):
        self.compile = [0.0, 0.0]
        self.compilations = 0

    def compiled(self, function, *arguments):
        begun = time.perf_counter(), time.process_time()
        call = jax.jit(function).lower(*arguments).compile()
        self.compile = [total + now - before for total, now, before in zip(self.compile, _now(), begun, strict=True)]
        self.compilations += 1
        return call

    def run(self, call, *arguments):
        begun = _now()
        value = jax.block_until_ready(call(*arguments))
        return value, [now - before for now, before in zip(_now(), begun, strict=True)]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def ours(net, variables, images, labels, chunk: int) -> tuple[Timer, dict[str, list[float]], np.ndarray, jax.Array]:
    timer, key = Timer(), jax.random.key(0)
    told = dict(num_classes=CLASSES, min_area=MIN_AREA, num_points=POINTS, chunk=chunk)

    def whole(variables, image, label):
        found = label_refiner.refine_labels(net, variables, key, image, label, **told)
        return found.label, found.prompts

    def kept(variables, features, label):
        found = label_refiner.refine_labels(net, variables, key, None, label, features=features, **told)
        return found.label, found.prompts

    image, label = jax.device_put((images, labels))
    call = timer.compiled(whole, variables, image, label)
    (_, counts), taken = timer.run(call, variables, image, label)
    encode = jax.jit(lambda variables, image: label_refiner.encode(net, variables, image))
    features = jax.lax.map(lambda x: encode(variables, x[None])[0], image)
    call = jax.jit(kept).lower(variables, features, label).compile()
    _, cached = timer.run(call, variables, features, label)
    return timer, {"whole": taken, "features kept": cached}, np.asarray(counts), features


def loops(net, variables, images, labels) -> tuple[Timer, dict[str, list[float]], list[int]]:
    timer, calls = Timer(), {}
    side, size = net.image_size, labels.shape[1:]
    scale = np.float32(side / max(size))

    def call(name, function, *arguments):
        kind = name, *(np.shape(x) for x in arguments)
        if kind not in calls:
            calls[kind] = timer.compiled(function, variables, *arguments)
        return jax.block_until_ready(calls[kind](variables, *arguments))

    def encode(image):
        return call("encode", lambda variables, x: label_refiner.encode(net, variables, x), image[None])

    def decode(features, points, ones):
        packed, kinds = prompts.pack(points * scale, ones)
        apply = lambda variables, *x: net.apply(variables, *x, method="decode", multimask=True)
        logits, iou = call("decode", apply, features, packed[None], kinds[None])
        return logits[0], iou[0]

    def enlarge(logits):
        def both(_, logits):
            x = bilinear(jnp.moveaxis(logits, 1, 3), (side, side))
            return jnp.moveaxis(bilinear(x[:, : round(size[0] * scale), : round(size[1] * scale)], size), 3, 1)

        return call("enlarge", both, logits)

    told = dict(num_classes=CLASSES, min_area=MIN_AREA, count=POINTS)
    rng = np.random.default_rng(0)
    for n in range(len(images)):  # compiles for every number of prompts
        found = refine_host.components(labels[n], CLASSES, MIN_AREA)
        if len(points := refine_host.points_of(found, POINTS, rng)):
            features = jax.ShapeDtypeStruct((1, side // net.patch, side // net.patch, net.features), jnp.float32)
            if ("decode", len(points)) not in calls:
                logits, _ = decode(jnp.zeros(features.shape), points, np.ones(points.shape[:2], np.int32))
                enlarge(logits)
                calls["decode", len(points)] = None
    encode(images[0])
    answers, spent = refine_host.refine(images, labels, rng, encode, decode, enlarge, **told)
    total = [sum(part[n] for part in spent.values()) for n in (0, 1)]
    counts = [sum(map(len, refine_host.components(label, CLASSES, MIN_AREA).values())) for label in labels]
    assert len(answers) == len(images)
    kept = [whole - part for whole, part in zip(total, spent["encode"], strict=True)]
    return timer, {"whole": total, "features kept": kept} | spent, counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--frame", type=int, default=1024, help="the network's side in pixels (smaller: to try the script)")
    parser.add_argument("--chunk", type=int, default=4, help="prompts of an image that are decoded at a time")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"refine-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    scenes = StreetScenes(size=(args.size, args.size), length=args.images)
    images, labels = (np.stack([scenes[n][name] for n in range(args.images)]) for name in ("image", "label"))
    net = MobileSam(image_size=args.frame)
    variables = jax.device_put(random_variables(net))
    our_timer, our_times, counts, _ = ours(net, variables, images, labels, args.chunk)
    loop_timer, loop_times, loop_counts = loops(net, variables, images, labels)
    assert counts.tolist() == loop_counts, (counts, loop_counts)
    row = {"case": f"refine {args.images} images of {args.size}x{args.size}, MobileSAM at {args.frame}, float32", "prompts": loop_counts}
    for n, kind in enumerate(("wall", "processor")):
        ours_s, loops_s = ({name: round(times[n], 3) for name, times in side.items()} for side in (our_times, loop_times))
        row[f"{kind}_s"] = {"segjax": ours_s, "host loops": loops_s}
        row[f"times_faster_{kind}"] = {name: round(loops_s[name] / ours_s[name], 2) for name in ours_s}
        row[f"compile_{kind}_s"] = {"segjax": round(our_timer.compile[n], 1), "host loops": round(loop_timer.compile[n], 1)}
        first = [times["whole"][n] + timer.compile[n] for times, timer in ((loop_times, loop_timer), (our_times, our_timer))]
        row[f"times_faster_{kind}"]["first batch, compilation included"] = round(first[0] / first[1], 2)
    row["compilations"] = {"segjax": our_timer.compilations, "host loops": loop_timer.compilations}
    row |= {"backend": jax.default_backend(), "cores": os.cpu_count(), "python": platform.python_version(), "chunk": args.chunk}
    row |= {name: version(name) for name in ("jax", "scipy", "numpy")}
    print(json.dumps(row, indent=1))
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(row) + "\n")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
