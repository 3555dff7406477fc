"""Many settings of the CamVid day-to-dusk job in minutes on one GPU: everything on the device, crops too, 50 steps a dispatch.

    python scripts/camvid_ablation.py --data=data/camvid --weights=weights/enet_cityscapes.safetensors --out=rows.jsonl [--only NAME ...]
    python scripts/camvid_ablation.py ... --start=runs/camvid0/01-source_only/weights.safetensors --group=from_day

The methods are segjax's own; only the sampling differs from `segjax run` (crops drawn on the device). A row holds the mIoU of 11
classes on dusk (`dusk`), on day val (`val`) and on `proxy`: day val with each image's colour mean and deviation moved to those of a
random dusk image, so that settings can be chosen without dusk's labels. `*_adabn` are the same after the statistics of that set.
scripts/results/camvid-ablation-gpu.jsonl holds rows of an earlier form of it, which placed its crops at fractions of a pixel.
"""

import argparse
import functools
import json
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from device_crops import crops
from PIL import Image

from segjax.data import label_spaces
from segjax.methods import adabn, fda, source_only
from segjax.nets.apply import full_size_logits
from segjax.nets.enet import ENet
from segjax.ops.metrics import confusion_matrix, mean_iou
from segjax.runtime.optim import make_optimizer
from segjax.verbs.variables import classifier_axes, shapes
from segjax.weights import walk

SET, CHUNK, CROP, BATCH = (0.01, 0.05, 0.09), 50, (256, 384), 4
ONLINE = dict(self_training_weight=1.0, ema_decay=0.99)
SETTINGS = {
    "from_enet": {
        "day": {},
        "day_jitter.4": dict(jitter=0.4),
        "fda.01_no_entropy": dict(betas=(0.01,), entropy_weight=0.0),
        "fda.01": dict(betas=(0.01,)),
        "fda.05": dict(betas=(0.05,)),
        "fda_set": dict(betas=SET),
        "fda_set_no_entropy": dict(betas=SET, entropy_weight=0.0),
        "fda_set_entropy.05": dict(betas=SET, entropy_weight=0.05, entropy_start=500),
        "fda_set_jitter.4": dict(betas=SET, jitter=0.4),
        "fda_set_ema": dict(betas=SET, ema_decay=0.99),
        "fda_small_set": dict(betas=(0.005, 0.01, 0.02)),
        "fda_set_jitter.4_ema_2000": dict(betas=SET, jitter=0.4, ema_decay=0.99, steps=2000),
    },
    "from_day": {
        "day_more": dict(),
        "fda_half": dict(betas=(0.01,), stylized_share=0.5),
        "no_fda_self_training_jitter.2": dict(betas=(0.01,), stylized_share=0.0, jitter=0.2, **ONLINE),
        "fda_half_self_training.7_jitter.2": dict(stylized_share=0.5, jitter=0.2, self_training_threshold=0.7, **ONLINE),
    },
}


def load(root: pathlib.Path, list_file: str, keep) -> tuple[np.ndarray, np.ndarray]:
    pairs = [line.split() for line in (root / list_file).read_text().splitlines() if line.strip()]
    pairs = [pair for pair in pairs if keep(pair[0])]
    images = np.stack([np.asarray(Image.open(root / image).convert("RGB")) for image, _ in pairs])
    labels = np.stack([np.asarray(Image.open(root / label)) for _, label in pairs])
    return images, np.where(labels == 11, 255, labels).astype(np.uint8)


def recoloured(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Each image with the channel means and deviations of a random image of `like`."""
    mean, deviation = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
    chosen = like[np.random.default_rng(0).integers(0, len(like), len(images))]
    moved = (images - mean) / deviation * chosen.std((1, 2), keepdims=True) + chosen.mean((1, 2), keepdims=True)
    return np.clip(moved, 0, 255).astype(np.uint8)


def starting_point(model, args):
    if args.start is not None:
        return walk.load_variables(args.start, shapes(model))
    variables = walk.load_variables(args.weights, shapes(ENet(20, layout="torch7")))
    index = label_spaces.mapping(label_spaces.get("camvid11"), label_spaces.get("cityscapes19")).astype(int) + 1
    for leaf, axis in classifier_axes(model).items():
        variables = walk.adapt_classifier(variables, index, classifier=f"^{re.escape(leaf)}$", axis=axis)
    return variables


def trainer(model, settings: dict, lr: float, sets: dict, start):
    """seed -> the variables that predict uses, after the settings' steps."""
    settings = dict(settings)
    steps = settings.pop("steps", 600 if lr < 5e-4 else 1000)
    optimizer = make_optimizer(name="adam", lr=lr, weight_decay=2e-4, schedule="poly", power=0.9, total_steps=steps)
    make = fda.make if settings.keys() - {"jitter"} else source_only.make
    method = make(model=model, optimizer=optimizer, **settings)

    def batch(key):
        source, target = jax.random.split(key)
        image, label = crops(source, CROP, BATCH, *sets["day"])
        return {"source_image": image, "source_label": label, "target_image": crops(target, CROP, BATCH, sets["dusk"][0])[0]}

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, key):
        step = lambda state, _: method.step(state, (), batch(jax.random.fold_in(key, state.step)))
        return jax.lax.scan(step, state, None, length=CHUNK)[0]

    def train(seed: int):
        state = jax.jit(method.init)(jax.random.key(seed), batch(jax.random.key(0))).with_variables(start)
        state = jax.tree.map(jnp.array, state)
        for _ in range(steps // CHUNK):
            state = chunk(state, jax.random.key(1000 + seed))
        return state.ema_variables

    return train


class Scorer:
    """mIoU of variables on a labelled set, and their AdaBN form on a set."""

    def __init__(self, model):
        self.confusion = jax.jit(lambda v, x, y: confusion_matrix(y, full_size_logits(model, v, x).argmax(-1), model.num_classes))
        method = adabn.make(model=model)
        self.begin = jax.jit(lambda x: method.init(jax.random.key(0), {"target_image": x}))
        self.step = jax.jit(lambda state, x: method.step(state, (), {"target_image": x})[0])

    def miou(self, variables, images, labels, size: int = 16) -> float:
        total = 0
        for i in range(0, len(images), size):
            x, y = images[i : i + size], labels[i : i + size]
            missing = size - len(x)
            x, y = np.concatenate([x, x[:1].repeat(missing, 0)]), np.concatenate([y, np.full((missing, *y.shape[1:]), 255, np.uint8)])
            total = total + np.asarray(self.confusion(variables, x, y), np.int64)
        return round(float(mean_iou(total)), 4)

    def adapted(self, variables, images, size: int = 15):
        state = self.begin(images[:size])
        state = state.replace(**variables)
        for i in range(0, len(images) - size + 1, size):
            state = self.step(state, images[i : i + size])
        return state.variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--weights", type=pathlib.Path, required=True)
    parser.add_argument("--start", type=pathlib.Path)
    parser.add_argument("--group", choices=list(SETTINGS), default="from_enet")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    sets = {"day": load(args.data, "train.txt", lambda name: "0001TP" not in name), "val": load(args.data, "val.txt", lambda name: True)}
    sets["dusk"] = load(args.data, "train.txt", lambda name: "0001TP" in name)
    sets["proxy"] = (recoloured(sets["val"][0], sets["dusk"][0]), sets["val"][1])
    on_device = {name: tuple(map(jnp.asarray, sets[name])) for name in ("day", "dusk")}
    model = ENet(11, layout="torch7")
    scorer, start = Scorer(model), starting_point(model, args)
    lr = 2e-4 if args.group == "from_day" else 5e-4
    with args.out.open("a") as file:
        for name, settings in SETTINGS[args.group].items():
            if args.only and name not in args.only:
                continue
            train = trainer(model, settings, lr, on_device, start)
            for seed in range(args.seeds):
                begin = time.monotonic()
                variables = train(seed)
                row = {"name": name, "group": args.group, "seed": seed, "train_s": round(time.monotonic() - begin, 1)}
                row |= {which: scorer.miou(variables, *sets[which]) for which in ("dusk", "val", "proxy")}
                row |= {
                    f"{which}_adabn": scorer.miou(scorer.adapted(variables, sets[which][0]), *sets[which]) for which in ("dusk", "proxy")
                }
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(row, flush=True)


if __name__ == "__main__":
    main()
