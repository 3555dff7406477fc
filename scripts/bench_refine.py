"""Refinement of pseudo-labels in one compiled call beside CLOUDS' released code in torch, in one run: `python scripts/bench_refine.py`.

Eight images of 768 x 768 (procedural street scenes with their labels), a MobileSAM of full size with random weights, float32 on both sides.
One is `nets.label_refiner.refine_labels` for the whole batch; the other (scripts/peers/refine_host.py, a process of its own) takes an image
at a time through the released SamPredictor, numpy and scipy around it. First ours answers the points that the other side drew, and both
masks are compared; then they are timed in turn. Ours also with the images' features kept from before, which the released code
cannot. Ours does what `segjax refine` does: it keeps freed pages (`segjax.runtime.allocator`) and has two images under way at once
(`segjax.runtime.cpu_devices`; --one-device: one). The other side runs as Python does, and as often once more with pages kept, so that the
row says what that alone changes.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else torch's idle threads spin and slow everybody
ROOT = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent)]

from segjax.runtime import allocator, cpu_devices  # noqa: E402

KEPT = allocator.keep_pages()
if "--one-device" not in sys.argv:
    cpu_devices.share_cores()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from segjax.data.procedural import StreetScenes  # noqa: E402
from segjax.nets import label_refiner  # noqa: E402
from segjax.nets.mobile_sam import MobileSam  # noqa: E402
from segjax.ops.sam_refine import Prompts  # noqa: E402
from segjax.runtime import mesh as meshes  # noqa: E402
from segjax.verbs import variables as shapes_of  # noqa: E402
from segjax.weights import mobile_sam, safetensors_io, walk  # noqa: E402

CLASSES, TOLD = 19, {"min_area": 5000, "points": 5}


def random_variables(net) -> dict:
    """Weights as random as they come, scaled so that activations keep their size; norms and biases as they begin."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = str(path[-1].key)
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        if name in ("bias", "mean"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        fan = np.prod(leaf.shape[-4:-1]) if name == "kernel" else 1  # scanned blocks have a leading axis
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, dict(shapes_of.shapes(net)))


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Peer:
    """The released code's process: `ask()` refines all images once."""

    def __init__(self, folder: pathlib.Path, keep: bool):
        start = f"import sys; sys.argv = ['', {str(folder)!r}]; sys.path[:0] = [{str(ROOT.parent)!r}, {str(ROOT / 'peers')!r}]; "
        pages = "from segjax.runtime import allocator; assert allocator.keep_pages(); " if keep else ""
        command = [sys.executable, "-W", "ignore", "-c", f"{start}{pages}import refine_host; refine_host.main()"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"bench_refine: the peer ended with exit code {self.process.wait()} (needs torch and mobile_sam)")
        return line

    def ask(self) -> dict:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = json.loads(self.answer())
        found["spent"]["whole"] = [sum(part[n] for part in found["spent"].values()) for n in (0, 1)]
        return found


class Ours:
    """The compiled calls: "whole" with the encoder in it, "features kept" without."""

    def __init__(self, net, variables, images: np.ndarray, labels: np.ndarray, chunk: int):
        key, told = jax.random.key(0), dict(num_classes=CLASSES, min_area=TOLD["min_area"], num_points=TOLD["points"], chunk=chunk)
        self.mesh = mesh = meshes.make_mesh()
        self.net, self.variables, self.chunk = net, jax.device_put(variables, meshes.replicated(mesh)), chunk
        self.image, self.label = jax.device_put((images, labels), meshes.batch_sharding(mesh))

        def refined(variables, image, label, features=None):
            found = label_refiner.refine_labels(net, variables, key, image, label, features=features, **told)
            return found.label, found.prompts

        with jax.set_mesh(mesh):
            self.features = jax.jit(lambda variables, x: label_refiner.encode(net, variables, x))(self.variables, self.image)
            begun = clock()
            self.calls = {"whole": (jax.jit(refined).lower(self.variables, self.image, self.label).compile(), (self.image, self.label))}
            self.compile = [now - before for now, before in zip(clock(), begun, strict=True)]
            kept, arguments = lambda variables, label, features: refined(variables, None, label, features), (self.label, self.features)
            self.calls["features kept"] = jax.jit(kept).lower(self.variables, *arguments).compile(), arguments

    def ask(self, name: str) -> list[float]:
        call, arguments = self.calls[name]
        begun = clock()
        jax.block_until_ready(call(self.variables, *arguments))
        return [now - before for now, before in zip(clock(), begun, strict=True)]

    def counts(self) -> list[int]:
        call, arguments = self.calls["whole"]
        return np.asarray(call(self.variables, *arguments)[1]).tolist()

    def same_points(self, drawn: list[np.ndarray]) -> np.ndarray:
        """The masks of every class [B,K,H,W] for the other side's points, overlaps kept, of images resized by PIL as there: with random
        weights the rounding of that to whole numbers alone moves some per cent of the pixels."""
        side = self.net.image_size
        resized = [Image.fromarray(x).resize((side, side), Image.Resampling.BILINEAR) for x in np.asarray(self.image)]
        features = jax.jit(lambda variables, x: label_refiner.encode(self.net, variables, x))(self.variables, np.stack(resized))
        most = max(map(len, drawn))
        points, valid = np.zeros((len(drawn), most, TOLD["points"], 2), np.float32), np.zeros((len(drawn), most), bool)
        for n, own in enumerate(drawn):
            points[n, : len(own)], valid[n, : len(own)] = own, True
        x, y = np.moveaxis(points[:, :, 0].astype(int), 2, 0)
        kinds = np.asarray(self.label)[np.arange(len(drawn))[:, None], y, x].astype(np.int32)
        answer = lambda variables, features, label, prompts: label_refiner.answer(
            self.net, variables, features, label, prompts, num_classes=CLASSES, chunk=self.chunk, remove_overlaps=False
        )
        found = jax.jit(answer)(self.variables, features, self.label, Prompts(points, kinds, valid))
        return np.moveaxis(np.asarray(found.targets.masks), -1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-device", action="store_true", help="one image at a time")
    parser.add_argument("--chunk", type=int, default=label_refiner.chunk_of(None), help="prompts of an image that are decoded at a time")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "results" / f"refine-{jax.default_backend()}.jsonl")
    args = parser.parse_args()
    scenes = StreetScenes(size=(args.size, args.size), length=args.images)
    images, labels = (np.stack([scenes[n][name] for n in range(args.images)]) for name in ("image", "label"))
    net = MobileSam()
    variables = random_variables(net)
    ours = Ours(net, variables, images, labels, args.chunk)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)
        (folder / "told.json").write_text(json.dumps(TOLD))
        flat = safetensors_io.flatten(jax.tree.map(np.asarray, variables))
        save_file(
            {key: np.ascontiguousarray(x) for key, x in walk.to_source(flat, mobile_sam.LAYOUT).items()}, folder / "weights.safetensors"
        )
        peers = {"released": Peer(folder, False), "released, pages kept": Peer(folder, True)}
        theirs = peers["released"].ask()
        drawn = np.load(folder / "points.npz")
        want = np.unpackbits(np.load(folder / "masks.npy"), axis=-1).astype(bool)
        peers["released, pages kept"].ask()
    assert theirs["prompts"] == ours.counts(), (theirs["prompts"], ours.counts())
    got = ours.same_points([drawn[str(n)] for n in range(args.images)])
    differ, either = int(np.sum(got != want)), int(np.sum(got | want))
    assert differ < 0.01 * either, f"{differ} pixels of masks differ, of {either}"
    taken: dict[str, dict[str, list]] = {name: {} for name in ("segjax", *peers)}
    for _ in range(args.repeats + 1):
        for name in ours.calls:
            taken["segjax"].setdefault(name, []).append(ours.ask(name))
        for name, peer in peers.items():
            for part, seconds in peer.ask()["spent"].items():
                taken[name].setdefault(part, []).append(seconds)
    row = {"case": f"refine {args.images} images of {args.size}x{args.size}, MobileSAM, float32", "prompts": theirs["prompts"]}
    row |= {"mask_share": round(float(want.mean()), 3), "mask_pixels": either, "mask_pixels_that_differ": differ}
    for n, kind in enumerate(("wall", "processor")):
        median = {
            side: {part: round(statistics.median(t[n] for t in all_[1:]), 3) for part, all_ in parts.items()}
            for side, parts in taken.items()
        }
        row[f"{kind}_s"] = median
        row[f"times_faster_{kind}"] = {
            f"{ours_name} / {side}": round(median[side]["whole"] / median["segjax"][ours_name], 2)
            for side in peers
            for ours_name in ours.calls
        }
        row[f"compile_{kind}_s"] = round(ours.compile[n], 1)
    row |= {"backend": jax.default_backend(), "devices": ours.mesh.size, "cores": os.cpu_count(), "python": platform.python_version()}
    row |= {
        "chunk": args.chunk,
        "repeats": args.repeats,
        "pages_kept": KEPT,
        **{name: version(name) for name in ("jax", "torch", "scipy", "numpy")},
    }
    print(json.dumps(row, indent=1))
    args.out.parent.mkdir(exist_ok=True)
    with open(args.out, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{args.out}: one row more")


if __name__ == "__main__":
    main()
