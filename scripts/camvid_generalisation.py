"""CamVid's labelled day scored on dusk that no step has seen: a mask-classification network beside plain ENet, in minutes on one GPU.

    python scripts/camvid_generalisation.py --data=data/camvid --pack=camvid.npz          # the files that are needed, as they are (36 MB)
    python scripts/camvid_generalisation.py --data=camvid.npz --out=rows.jsonl

CLOUDS without what cannot be had here: the generated images are day images in the look of the embedded street scenes (what `segjax stylize`
does, their labels dropped), half of those scenes at dusk; the teacher's labels go unrefined, for a SAM without weights says nothing.
Network, method and rates are those of configs/clouds.py:camvid; both networks begin from random weights and see the same crops. A seed is

    enet     source_only, jitter .4             mask         Mask2Former on a small ResNet, the warm-up
    more     the warm-up for the joint steps    joint        those steps with the teacher's labels on stylized images (both from `mask`)

One process, seeds one after the other, programs compiled once and side by side. The last network counts. Rows hold mIoU and class IoU on
dusk (62 images) and on day val (every second image).
"""

import argparse
import concurrent.futures
import functools
import io
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

from segjax.runtime import allocator  # noqa: E402

allocator.keep_pages()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from device_crops import crops  # noqa: E402
from PIL import Image  # noqa: E402

from segjax.data.procedural import StreetScenes  # noqa: E402
from segjax.methods import clouds, clouds_warmup, source_only  # noqa: E402
from segjax.nets.apply import full_size_logits  # noqa: E402
from segjax.nets.enet import ENet  # noqa: E402
from segjax.ops import fourier  # noqa: E402
from segjax.ops.metrics import confusion_matrix, iou  # noqa: E402
from segjax.runtime.optim import make_optimizer  # noqa: E402
from segjax.verbs import build, config_file  # noqa: E402

CROP, CLASSES, BETAS = (256, 384), 11, (0.01, 0.05, 0.09)
DUSK = "0001TP"


def pack(root: pathlib.Path, out: pathlib.Path) -> None:
    """The images and labels of train.txt and of every second line of val.txt, byte for byte."""
    found = {}
    for part, step in (("train", 1), ("val", 2)):
        pairs = [line.split() for line in (root / f"{part}.txt").read_text().splitlines() if line.strip()]
        for image, label in pairs[::step]:
            which = part if part == "val" else "dusk" if DUSK in image else "day"
            for kind, name in (("image", image), ("label", label)):
                found[f"{which}/{kind}/{pathlib.Path(image).stem}"] = np.frombuffer((root / name).read_bytes(), np.uint8)
    np.savez(out, **found)
    print(f"{len(found) // 2} images -> {out}, {out.stat().st_size / 1e6:.1f} MB")


def load(file: pathlib.Path, limit: int, shrink: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (images uint8 [N,H,W,3], labels uint8 [N,H,W], 255 = void)."""
    packed = np.load(file)
    names = {
        which: sorted(key.split("/")[2] for key in packed.files if key.startswith(f"{which}/image/")) for which in ("day", "dusk", "val")
    }

    def read(which: str, kind: str, name: str) -> np.ndarray:
        image = Image.open(io.BytesIO(packed[f"{which}/{kind}/{name}"].tobytes()))
        size = image.width // shrink, image.height // shrink
        if kind == "image":
            return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        return np.asarray(image.resize(size, Image.Resampling.NEAREST))

    found = {}
    for which, own in names.items():
        images, labels = (np.stack([read(which, kind, name) for name in own[: limit or None]]) for kind in ("image", "label"))
        found[which] = images, np.where(labels >= CLASSES, 255, labels).astype(np.uint8)
    return found


def stylized(images: np.ndarray, batch: int = 16) -> np.ndarray:
    """Each image in the look of a random embedded scene, half of them at dusk, by a window drawn from BETAS; as `segjax stylize`."""
    rng = np.random.default_rng(0)
    looks = [StreetScenes(size=images.shape[1:3], length=32, look=look, labelled=False) for look in ("day", "dusk")]
    scenes = np.stack([scene["image"] for look in looks for scene in look])
    one = jax.jit(lambda key, a, b: fourier.amplitude_transfer_bands(a, b, BETAS, key, variant="centred"))
    found = []
    for start in range(0, len(images), batch):
        own = np.resize(np.arange(start, min(start + batch, len(images))), batch)
        pair = (x.astype(np.float32) for x in (images[own], scenes[rng.integers(0, len(scenes), batch)]))
        result = np.asarray(one(jax.random.key(start), *pair))[: min(batch, len(images) - start)]
        found.append(np.floor(np.clip(result, 0, 255) + 0.5).astype(np.uint8))
    return np.concatenate(found)


def methods(steps: int, joint_steps: int) -> tuple[dict, dict]:
    """(name -> (network, method, steps), name -> network): the two networks' methods at the settings of configs/clouds.py:camvid."""
    config = config_file.load(f"{ROOT.parent / 'configs' / 'clouds.py'}:camvid")
    stages = {name: build.plain(config.stages[name]) for name in ("warmup", "joint")}
    net = build.network({k: v for k, v in stages["warmup"]["model"].items() if k not in build.WEIGHT_KEYS}, "model")
    optimizer = lambda name, total: make_optimizer(**{**stages[name]["optimizer"], "total_steps": total})
    told = {name: {k: v for k, v in stage["method"].items() if k != "make"} for name, stage in stages.items()}
    enet = ENet(CLASSES)
    adam = make_optimizer(name="adam", lr=5e-4, weight_decay=2e-4, schedule="poly", power=0.9, total_steps=steps)
    found = {
        "enet": (enet, source_only.make(model=enet, optimizer=adam, jitter=0.4), steps),
        "mask": (net, clouds_warmup.make(model=net, optimizer=optimizer("warmup", steps), **told["warmup"]), steps),
        "more": (net, clouds_warmup.make(model=net, optimizer=optimizer("joint", joint_steps), **told["warmup"]), joint_steps),
        "joint": (net, clouds.make(model=net, optimizer=optimizer("joint", joint_steps), **told["joint"]), joint_steps),
    }
    return found, {"enet": enet, "mask": net}


class Trainer:
    """A method's compiled pieces, used for every seed."""

    def __init__(self, name: str, method, steps: int, batch: int, dispatch: int, crop: tuple[int, int], sets: dict):
        self.steps, self.dispatches = steps, steps // dispatch

        def draw(key, day, unlabelled):
            source, target = jax.random.split(key)
            image, label = crops(source, crop, batch, *day)
            found = {"source_image": image, "source_label": label}
            return found | ({"target_image": crops(target, crop, batch // 2, unlabelled)[0]} if name == "joint" else {})

        def chunk(state, key, day, unlabelled):
            def step(state, _):
                state, metrics = method.step(state, (), draw(jax.random.fold_in(key, state.step), day, unlabelled))
                return state, metrics

            state, metrics = jax.lax.scan(step, state, None, length=dispatch)
            return state, jax.tree.map(lambda x: x[-1], metrics)

        data = sets["day"], sets["stylized"]
        self.data = data
        once = {"xla_backend_optimization_level": 0}  # runs once: minutes of compilation otherwise
        init = jax.jit(lambda key, *data: method.init(key, draw(key, *data)), compiler_options=once)
        shape = jax.eval_shape(init, jax.random.key(0), *data)
        self.init = init.lower(jax.random.key(0), *data).compile()
        self.chunk = jax.jit(chunk, donate_argnums=0).lower(shape, jax.random.key(0), *data).compile()

    def run(self, seed: int, start: dict | None = None):
        """(the variables that predict, the last metrics, seconds)."""
        begun = time.monotonic()
        state = self.init(jax.random.key(seed), *self.data)
        if start is not None:
            state = jax.tree.map(jnp.array, state.with_variables(start))
        metrics = {}
        for _ in range(self.dispatches):
            state, metrics = self.chunk(state, jax.random.key(1000 + seed), *self.data)
        return state.ema_variables, {name: round(float(value), 4) for name, value in metrics.items()}, round(time.monotonic() - begun, 1)


def scorer(net, like: dict, size: tuple[int, ...], batch: int):
    """(variables, images, labels) -> integer confusion matrix; compiled for batches of that many images of `size`."""
    count = lambda v, x, y: confusion_matrix(y, full_size_logits(net, v, x).argmax(-1), CLASSES)
    shape = jax.ShapeDtypeStruct
    call = jax.jit(count).lower(like, shape((batch, *size, 3), jnp.uint8), shape((batch, *size), jnp.uint8)).compile()

    def confusion(variables, images, labels):
        total = np.zeros((CLASSES, CLASSES), np.int64)
        for start in range(0, len(images), batch):
            x, y = images[start : start + batch], labels[start : start + batch]
            missing = batch - len(x)
            x = np.concatenate([x, x[:1].repeat(missing, 0)])
            y = np.concatenate([y, np.full((missing, *y.shape[1:]), 255, np.uint8)])
            total += np.asarray(call(variables, x, y), np.int64)
        return total

    return confusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="CamVid's folder to pack, else what was packed")
    parser.add_argument("--pack", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=600, help="of enet and mask")
    parser.add_argument("--joint-steps", type=int, default=300, help="of more and joint")
    parser.add_argument("--batch", type=int, default=8, help="labelled crops a step, and half as many stylized ones")
    parser.add_argument("--dispatch", type=int, default=25, help="steps a call of the device")
    parser.add_argument("--shrink", type=int, default=1, help="divisor of images, labels and crops (CPU)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["enet", "mask", "more", "joint"])
    parser.add_argument("--limit", type=int, default=0, help="images of each set, to try the script")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / "camvid-generalisation-gpu.jsonl")
    args = parser.parse_args()
    if args.pack:
        return pack(args.data, args.pack)
    begun = time.monotonic()
    say = lambda text: print(f"[{time.monotonic() - begun:5.1f} s] {text}", flush=True)
    sets, crop = load(args.data, args.limit, args.shrink), (CROP[0] // args.shrink, CROP[1] // args.shrink)
    on_device = {"day": tuple(map(jnp.asarray, sets["day"])), "stylized": jnp.asarray(stylized(sets["day"][0]))}
    say(f"{', '.join(f'{len(images)} {name}' for name, (images, _) in sets.items())} on {jax.devices()[0].device_kind}")
    plan, nets = methods(args.steps, args.joint_steps)
    shapes = {
        name: jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        for name, net in nets.items()
    }
    size, batch = sets["day"][0].shape[1:3], min(16, len(sets["dusk"][0]))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # XLA compiles outside of Python's lock
        trainers = {
            name: pool.submit(Trainer, name, plan[name][1], plan[name][2], args.batch, args.dispatch, crop, on_device) for name in args.only
        }
        scorers = {name: pool.submit(scorer, net, dict(shapes[name]), size, batch) for name, net in nets.items()}
        trainers, scorers = ({name: found.result() for name, found in all_.items()} for all_ in (trainers, scorers))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name]["params"])) for name in nets}
    say(f"compiled {', '.join(trainers)}; parameters {count}")
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("a") as file:
        for seed in range(args.seeds):
            mask = None
            for name, trainer in trainers.items():
                variables, metrics, seconds = trainer.run(seed, mask if name in ("more", "joint") else None)
                mask = variables if name == "mask" else mask
                row = {"name": name, "seed": seed, "steps": trainer.steps, "batch": args.batch, "size": list(size), "train_s": seconds}
                for which in ("dusk", "val"):
                    each = iou(scorers["enet" if name == "enet" else "mask"](variables, *sets[which]))
                    row |= {which: round(float(np.nanmean(each)), 4), f"{which}_classes": [round(float(x), 4) for x in each]}
                row |= {"parameters": count["enet" if name == "enet" else "mask"], "metrics": metrics}
                row |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
                file.write(json.dumps(row) + "\n")
                file.flush()
                say(f"seed {seed} {name}: dusk {row['dusk']}, day val {row['val']}, {seconds} s, {metrics}")


if __name__ == "__main__":
    main()
