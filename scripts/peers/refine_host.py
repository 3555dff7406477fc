"""The yardstick of `scripts/bench_refine.py`: CLOUDS' refinement as its released code runs it, in torch, in a process of its own.

`python refine_host.py FOLDER` reads images.npy uint8 [B,H,W,3], labels.npy uint8 [B,H,W], weights.safetensors (MobileSAM's names) and
told.json, prints "ready", and answers every line on stdin with a pass over all images: JSON of [wall, processor] seconds by part and the
number of prompts of each image. The first pass keeps overlaps and leaves points.npz and masks.npy (a mask a class, packed bits) in FOLDER,
for the other side to compare.

Network and predictor are the released ones: `pip install --no-deps mobilesam-mirror` (the repository ChaoningZhang/MobileSAM as a package).
What stands around them follows yasserben/CLOUDS clouds/clouds.py and my_utils/mask_utils.py statement by statement: masks of every class as
float tensors, scipy for each, an int64 mask a component, numpy's permutation of all its pixels for five points, PIL's resize, the image
encoder once an image, one call of the decoder for all prompts of an image (the image repeated for each, inside the package), all three
masks of each at 1024 and again at full size, and only then the best. Left out: `union_of_masks` and what it feeds, a matplotlib window and
a PNG for every image, which are there to look at.
"""

import json
import pathlib
import sys
import time
import types

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage


def stand_in(name: str, **contents) -> None:
    """A module of that name. mobile_sam asks timm and torchvision for initialisers, an identity and PIL's resize alone."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(contents)


class DropPath(torch.nn.Identity):
    def __init__(self, drop_prob=None):
        super().__init__()
        self.drop_prob = drop_prob


def predictor(weights: pathlib.Path):
    """The released SamPredictor over the released MobileSAM with those weights."""
    pair = lambda x: x if isinstance(x, tuple) else (x, x)
    for name in ("timm", "torchvision", "torchvision.transforms", "torchvision.ops"):
        stand_in(name)
    stand_in("timm.models", build_model_with_cfg=None)
    stand_in("timm.models.layers", DropPath=DropPath, to_2tuple=pair, trunc_normal_=torch.nn.init.trunc_normal_)
    stand_in("timm.models.registry", register_model=lambda function: function)
    stand_in("torchvision.ops.boxes", batched_nms=None, box_area=None)  # of the automatic generator
    resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    stand_in("torchvision.transforms.functional", resize=resize, to_pil_image=Image.fromarray)
    from mobile_sam import SamPredictor, sam_model_registry

    network = sam_model_registry["vit_t"](checkpoint=None).train()
    missing, unknown = network.load_state_dict(load_file(weights), strict=False)
    left = [key for key in missing if not key.endswith("num_batches_tracked") and "head" not in key.split(".")[1]]
    assert not unknown and not left, (unknown, left)
    return SamPredictor(network.eval())  # only now: TinyViT looks up its attention biases when it is told to evaluate


def class_masks(label: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """`process_segmentation_maps`."""
    found = torch.unique(label, sorted=True)
    found = found[found != 19]
    found = found[found != 255]
    return found.numpy(), torch.stack([(label == k).float() for k in found]) if len(found) else torch.zeros(0, *label.shape)


def components(labels: np.ndarray, masks: torch.Tensor, min_area: int) -> dict[int, np.ndarray]:
    """`separate_shapes_list`: the masks of large components by class."""
    found = {}
    for mask, k in zip(masks.numpy(), labels, strict=True):
        marks, count = ndimage.label(mask)
        areas = ndimage.sum(mask, marks, range(count + 1))
        own = []
        for n in range(1, count + 1):
            if areas[n] > min_area:
                own.append((marks == n).astype(int))
        found[k] = np.array(own)
    return found


def points_of(found: dict[int, np.ndarray], count: int) -> tuple[torch.Tensor, dict[int, int]]:
    """`get_fixed_points` ("random", no erosion) and `dict_to_tensor`: (x, y) [P,count,2], and how many are of which class."""
    drawn, counts = [], {}
    for k, masks in found.items():
        counts[k] = len(masks)
        for mask in masks:
            pixels = np.column_stack(np.where(mask == 1))[:, ::-1]
            pixels = pixels[np.random.choice(len(pixels), count, replace=False)]
            drawn.append(torch.tensor(pixels.copy(), dtype=torch.float32))
    return torch.stack(drawn) if drawn else torch.empty(0, count, 2), counts


def best_masks(masks: torch.Tensor, iou: torch.Tensor, keep: bool) -> torch.Tensor:
    """`select_best_masks` and, unless overlaps are kept, `remove_intersecting_pixels`."""
    _, index = iou.max(dim=1)
    masks = masks[torch.arange(masks.size(0)), index]
    if not keep:
        masks[:, masks.sum(dim=0) > 1] = 0
    return masks


def by_class(masks: torch.Tensor, counts: dict[int, int]) -> dict[int, torch.Tensor]:
    """`reconstruct_dict` and `transform_masks`: one mask a class that has prompts."""
    united, start = {}, 0
    for k, count in counts.items():
        if count:
            united[k] = torch.max(masks[start : start + count], dim=0).values
            start += count
    labels, stacked = torch.tensor(list(united)), torch.stack(list(united.values()))
    return dict(zip(labels.tolist(), stacked, strict=True))


class Clock:
    """[wall, processor] seconds by part."""

    def __init__(self):
        self.spent = {name: [0.0, 0.0] for name in ("components", "points", "encode", "decode", "combine")}

    def __call__(self, name: str, call, *arguments):
        begun = time.perf_counter(), time.process_time()
        value = call(*arguments)
        for n, now in enumerate((time.perf_counter(), time.process_time())):
            self.spent[name][n] += now - begun[n]
        return value


@torch.no_grad()
def refine(sam, images: np.ndarray, labels: np.ndarray, clock: Clock, *, keep: bool, min_area: int, points: int) -> list[tuple]:
    """(class -> mask, points) of every image: the loop of CLOUDS.forward. As there, all images' points are drawn before SAM is asked."""
    size = labels.shape[1:]
    whole = [clock("components", class_masks, torch.from_numpy(label)) for label in labels]
    found = [clock("components", components, *masks, min_area) for masks in whole]
    drawn = [clock("points", points_of, masks, points) for masks in found]
    answers = []

    def encode(image):
        resized = sam.transform.apply_image(image)
        sam.set_torch_image(torch.tensor(resized.transpose(2, 0, 1)).unsqueeze(0), size)

    def decode(coordinates):
        coordinates = torch.tensor(sam.transform.apply_coords(coordinates.numpy(), size))
        ones = torch.ones(coordinates.shape[:2], dtype=torch.float32)
        return sam.predict_torch(point_coords=coordinates, point_labels=ones, multimask_output=True)

    for image, (coordinates, counts), (own, masks) in zip(images, drawn, whole, strict=True):
        clock("encode", encode, image)
        if len(coordinates):
            full, iou, _ = clock("decode", decode, coordinates)
            answer = clock("combine", lambda full=full, iou=iou, counts=counts: by_class(best_masks(full, iou, keep), counts))
        else:
            answer = dict(zip(own.tolist(), masks, strict=True))
        answers.append((answer, coordinates.numpy()))
    return answers


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    images, labels = np.load(folder / "images.npy"), np.load(folder / "labels.npy")
    told = json.loads((folder / "told.json").read_text())
    try:
        sam = predictor(folder / "weights.safetensors")
    except ModuleNotFoundError as error:
        raise SystemExit(f"refine_host: {error}: pip install --no-deps mobilesam-mirror") from None
    np.random.seed(0)
    print("ready", flush=True)
    for turn, _ in enumerate(sys.stdin):
        clock = Clock()
        answers = refine(sam, images, labels, clock, keep=turn == 0, **told)
        if turn == 0:
            masks = [
                [answer[k].numpy() > 0 if k in answer else np.zeros(labels.shape[1:], bool) for k in range(19)] for answer, _ in answers
            ]
            np.save(folder / "masks.npy", np.packbits(np.array(masks), axis=-1))
            np.savez(folder / "points.npz", **{str(n): points for n, (_, points) in enumerate(answers)})
        print(json.dumps({"spent": clock.spent, "prompts": [len(points) for _, points in answers]}), flush=True)


if __name__ == "__main__":
    main()
