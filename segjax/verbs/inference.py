"""How a network is asked for its answer: whole image or sliding window, one view or several, and at which size it answers.

Keys of a config's `evaluate.NAME`, and flags of `evaluate` and `predict` that replace them. What the papers do: FDA and DACS one whole
image; DiGA `scales=(1.0, 0.5), combine="max"`; HRDA `window=(1024, 1024), stride=(512, 512)`; mmseg's multi-scale tables
`scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True`; CLOUDS the whole image, shorter edge at 1024 (`size=1024`).
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from segjax.errors import ConfigError
from segjax.ops import inference, resize, windows
from segjax.typing import Array
from segjax.verbs.arguments import parse_size


@dataclasses.dataclass(frozen=True)
class Inference:
    """scales, flip, combine: `ops.inference.combine_views`. window, stride (default two thirds of the window, as mmseg's configs), both
    (height, width): `ops.windows.slide` at each scale, `window_batch` windows of an image at once. upsample: "logits" resizes the logits
    to the label's size, bilinear, then takes the argmax (the papers' habit); "prediction" takes the argmax at the image's size and
    resizes it to the label's, nearest (the CamVid figures of the Torch7 ENet).
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    combine: str = "softmax"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    window_batch: int = 1
    upsample: str = "logits"


KEYS = tuple(field.name for field in dataclasses.fields(Inference))
CHOICES = {"combine": inference.COMBINE, "upsample": ("logits", "prediction")}


def from_spec(spec: Mapping[str, Any], where: str) -> Inference:
    """The keys of `Inference` that a config's `evaluate.NAME` or the flags have, checked. ConfigError names the key.

    where: what precedes a key in a message, "config...evaluate.NAME." or "--".
    """
    found = Inference(**{key: spec[key] for key in KEYS if key in spec and spec[key] not in (None, ())})
    for key, known in CHOICES.items():
        if getattr(found, key) not in known:
            raise ConfigError(f"{where}{key}={getattr(found, key)!r}: expected one of {', '.join(known)}")
    if not isinstance(found.scales, tuple) or not all(isinstance(s, int | float) and 0 < s <= 8 for s in found.scales):
        raise ConfigError(f"{where}scales={found.scales!r}: expected factors above 0, e.g. (0.5, 1.0)")
    for key in ("window", "stride"):
        check_size(getattr(found, key), f"{where}{key}")
    if not isinstance(found.window_batch, int) or found.window_batch < 1:
        raise ConfigError(f"{where}window_batch={found.window_batch!r}: expected a whole number, 1 or more")
    if found.stride and not found.window:
        raise ConfigError(f"{where}stride={found.stride!r} without a window: set window=(height, width) too")
    if found.window and found.stride and any(s > w for s, w in zip(found.stride, found.window, strict=True)):
        raise ConfigError(f"{where}stride={found.stride!r} exceeds window={found.window!r}: pixels between windows would never be seen")
    return found


def check_size(size: Any, where: str) -> None:
    """ConfigError unless it is None or (height, width) in pixels."""
    if size is not None and (not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size)):
        raise ConfigError(f"{where}={size!r}: expected (height, width) in pixels, e.g. (512, 1024)")


def add_arguments(parser: argparse.ArgumentParser):
    """The flags that say how the network is asked, shared by `evaluate` and `predict`."""
    parser.add_argument("--scales", default="", metavar="S,S,...", help="combine views at these scales, e.g. 0.5,1.0")
    parser.add_argument("--flip", action="store_true", help="and their mirror images")
    parser.add_argument("--combine", choices=inference.COMBINE, help="how views become one: mean of softmax (default), of logits, or max")
    parser.add_argument("--window", default="", metavar="WxH", help="sliding window over each view, e.g. 1024x512")
    parser.add_argument("--stride", default="", metavar="WxH", help="step of the window; default: two thirds of it")
    parser.add_argument("--window-batch", type=int, metavar="N", help="windows of an image that run at once (memory grows with it)")
    parser.add_argument("--upsample", choices=CHOICES["upsample"], help="what is resized to the full size: logits, or their argmax")


def from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that flags set, as `from_spec` takes them. ConfigError names the flag."""
    found: dict[str, Any] = {"flip": True} if args.flip else {}
    if args.scales:
        try:
            found["scales"] = tuple(float(part) for part in args.scales.split(","))
        except ValueError:
            raise ConfigError(f"--scales={args.scales}: expected numbers with commas, e.g. 0.5,1.0") from None
    for key in ("window", "stride"):
        size = parse_size(getattr(args, key), f"--{key}")
        found |= {key: size[::-1]} if size else {}
    return found | {key: value for key in ("combine", "window_batch", "upsample") if (value := getattr(args, key)) is not None}


def windowed(function: Callable[[Array], Array], how: Inference) -> Callable[[Array], Array]:
    """A function image -> logits of one size that reads the image in windows, if `how` says so."""
    if how.window is None:
        return function
    stride = how.stride or (max(1, how.window[0] * 2 // 3), max(1, how.window[1] * 2 // 3))
    return functools.partial(windows.slide, function, window=how.window, stride=stride, batch=how.window_batch)


@functools.partial(jax.jit, static_argnames=("predict", "align_corners", "how", "canvas", "fitted"))
def answer(
    predict: Any, state: Any, image: Array, size: Array, *, align_corners: bool, how: Inference, canvas: tuple[int, int], fitted: bool
) -> Array:
    """The output that wins at each pixel, uint8 [B,*canvas]: one compiled program for each shape of image and canvas.

    predict: a method's. image: uint8 [B,h,w,3]. canvas: (height, width) of the answer. fitted: rows differ in size within the canvas
    (size: int32 [B,2]) while the images were resized to one size.
    """
    function = windowed(lambda image: predict(state, (), image), how)
    views: dict[str, Any] = dict(scales=how.scales, flip=how.flip, combine=how.combine)
    to = (image.shape[1], image.shape[2]) if how.upsample == "prediction" else canvas
    if fitted and how.upsample == "logits":
        place = lambda logits: resize.bilinear_within(logits, size, canvas, align_corners)
    else:
        place = lambda logits: logits if logits.shape[1:3] == to else resize.bilinear(logits, to, align_corners)
    prediction = jnp.argmax(inference.combine_views(function, image, place, **views), -1).astype(jnp.uint8)
    if how.upsample == "logits":
        return prediction
    return resize.nearest_within(prediction, size, canvas) if fitted else resize.nearest(prediction, canvas)
