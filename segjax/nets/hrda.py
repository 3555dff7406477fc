"""HRDA: one network at two resolutions, a learned weight between them (Hoyer et al., ECCV 2022; code lhoyer/HRDA).

The context is the whole crop at half size, the detail a window of it at full size; encoder and head are the same for both, and a light
second head on the context's features says, class by class, how much the detail counts. BatchNorm in the head takes context and detail
apart, in this order. In training the window is a random one of each
pass; elsewhere windows that overlap by half cover the crop (nine of 512 in 1024), all of them one batch, and their logits are averaged.
Source: mmseg/models/segmentors/hrda_encoder_decoder.py and decode_heads/hrda_head.py. Its ablations `blurhr` and unequal scales other than
1 / ratio are not built.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets.daformer import DILATIONS, DAFormerHead
from segjax.nets.deeplab import normalise
from segjax.nets.dlv2 import REDUCED, DLV2Head, resnet_of
from segjax.nets.mit import MiTSettings
from segjax.nets.scan import Remat
from segjax.ops import multi_resolution as two
from segjax.ops.resize import bilinear
from segjax.ops.two_views import one_batch
from segjax.typing import Array, Key

ATTENTIONS = ("classwise", "single", "fixed")


class HRDAHead(nn.Module):
    """The head on context and detail, and the attention's logits: (coarse, fine, attention or None). Both are functions of a name."""

    head: Callable[..., nn.Module]
    attention: Callable[..., nn.Module] | None

    @nn.compact
    def __call__(self, context: Sequence[Array], detail: Sequence[Array], train: bool) -> tuple[Array, Array, Array | None]:
        head: Any = self.head(name="head")
        coarse, fine = head(context, train), head(detail, train)
        attention: Any = self.attention and self.attention(name="scale_attention")
        return coarse, fine, None if attention is None else attention(context, train)


class _TwoResolutions:
    """What both networks share. window: (height, width) of the detail in pixels, cut to the image where that is smaller.

    ratio: of the detail's scale to the context's. attention: "classwise", "single" (one weight for all classes) or "fixed" (a half).
    overlap: windows of a prediction lie half a window apart, else a whole one.
    """

    window: tuple[int, int]
    ratio: int
    attention: str
    overlap: bool
    normalization: str
    num_classes: int
    multiple = 8
    """Corners of random windows are multiples of it (the code's crop_coord_divisible)."""

    def draw(self, key: Key, size: tuple[int, int], views: int) -> dict[str, Array]:
        """What a training pass over `views` pictures of each image draws: the corners of their windows, int32 [views,2]."""
        window = self._window(size)
        corner = jax.vmap(lambda key: two.detail_corner(key, size, window, multiple=self.multiple))(jax.random.split(key, views))
        return {"corner": corner}

    def _window(self, size: tuple[int, int]) -> tuple[int, int]:
        return min(self.window[0], size[0]), min(self.window[1], size[1])

    def _outputs_of_attention(self) -> int:
        if self.attention not in ATTENTIONS:
            raise ConfigError(f"model.attention={self.attention!r}: expected {', '.join(ATTENTIONS)}")
        return self.num_classes if self.attention == "classwise" else 1

    def _answer(self, encode: Any, head: Any, image: Array, corner: Array | None, train: bool, stride: int) -> dict[str, Array]:
        """head: None for the features alone."""
        x = normalise(image.astype(jnp.float32), self.normalization)
        asked = x.shape[1], x.shape[2]
        beyond = tuple(-side % (stride * self.ratio) for side in asked)
        if any(beyond):
            if corner is not None:
                raise ConfigError(f"HRDA trains on crops whose sides are multiples of {stride * self.ratio}, not {asked}: change data.crop")
            x = jnp.pad(x, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))  # 0 is the mean colour
        size = x.shape[1], x.shape[2]
        window = self._window(size)
        if any(side % stride for side in window):
            raise ConfigError(f"model.window={self.window}: expected multiples of {stride}, the network's stride")
        context = encode(bilinear(x, (size[0] // self.ratio, size[1] // self.ratio)), train)
        if head is None:
            return {"features": context[-1]}
        if corner is not None:
            views = corner.shape[0]
            by_view = lambda array: [array.reshape(-1, views, *array.shape[1:])[:, n] for n in range(views)]
            detail = one_batch(jnp.stack([two.cut(part, corner[n], window) for n, part in enumerate(by_view(x))], 1))
            coarse, fine, attention = head(context, encode(detail, train), train)
            attention = jnp.zeros((*coarse.shape[:3], 1)) if attention is None else attention
            parts = zip(by_view(coarse), by_view(fine), by_view(attention), corner // stride, strict=True)
            fused, masked = zip(*(two.fuse(*part, ratio=self.ratio) for part in parts), strict=True)
            outputs = {"logits": one_batch(jnp.stack(fused, 1)), "context_logits": one_batch(jnp.stack(masked, 1))}
            return outputs | {"detail_logits": fine, "detail_corner": corner, "features": context[-1]}
        half = lambda side: max(side // 2 // stride * stride, stride)
        apart = (half(window[0]), half(window[1])) if self.overlap else window
        corners = two.window_corners(size, window, apart)
        coarse, fine, attention = head(context, encode(two.cut_windows(x, corners, window), train), train)
        attention = jnp.zeros((*coarse.shape[:3], 1)) if attention is None else attention
        fine = two.merge_windows(fine, corners // stride, (size[0] // stride, size[1] // stride))
        logits = two.fuse(coarse, fine, attention, ratio=self.ratio)[0]
        if any(beyond):
            logits = bilinear(logits, size)[:, : asked[0], : asked[1]]
        return {"logits": logits, "features": context[-1]}


class HRDA(_TwoResolutions, MiTSettings):
    """DAFormer at two resolutions over RGB images [B,H,W,3] in [0,1]. 85,685,990 parameters on MiT-B5 with 19 classes.

    Without a corner: {"logits": float32 [B,H/4,W/4,K] (the image's size where that is no multiple of 8), "features": the context's last
    stage}. With the corners that `draw` gives, int32 [V,2], for V pictures of each image side by side in the batch: also "detail_logits"
    [B,h/4,w/4,K] of the windows, "detail_corner" and "context_logits" (1 - attention) * coarse, which `ops.supervised` takes.
    head=False gives the features alone. Fields beside DAFormer's: see `_TwoResolutions`; attention_channels are the light head's.
    """

    num_classes: int
    channels: int = 256
    fusion: str = "sepaspp"
    kernel_size: int = 1
    dilations: Sequence[int] = DILATIONS
    dropout: float = 0.1
    dropout_kind: str = "channel"
    normalization: str = "imagenet"
    align_corners: bool = False
    window: tuple[int, int] = (512, 512)
    ratio: int = 2
    attention: str = "classwise"
    attention_channels: int = 256
    overlap: bool = True

    @nn.compact
    def __call__(self, image: Array, train: bool = False, corner: Array | None = None, head: bool = True) -> dict[str, Array]:
        def daformer(classes: int, channels: int, fusion: str, kernel_size: int) -> Callable[..., nn.Module]:
            fields = (classes, channels, fusion, kernel_size, self.dilations, self.dropout, self.dropout_kind, self.dtype)
            return lambda name: DAFormerHead(*fields, name=name)

        kernel_size = self.kernel_size if self.fusion == "conv" else 1
        attention = daformer(self._outputs_of_attention(), self.attention_channels, "conv", kernel_size)
        both = daformer(self.num_classes, self.channels, self.fusion, self.kernel_size)
        decode = HRDAHead(both, None if self.attention == "fixed" else attention, name="decode_head") if head else None
        return self._answer(self.encoder(), decode, image, corner, train, stride=4)


class HRDADLV2(_TwoResolutions, nn.Module):
    """`nets.dlv2.DLV2` at two resolutions, attention by another such head; outputs as HRDA's, at stride 8."""

    num_classes: int
    backbone: str = "resnet101"
    width: int = 64
    dilations: Sequence[int] = REDUCED
    normalization: str = "imagenet"
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32
    align_corners: bool = False
    window: tuple[int, int] = (512, 512)
    ratio: int = 2
    attention: str = "classwise"
    overlap: bool = True

    @nn.compact
    def __call__(self, image: Array, train: bool = False, corner: Array | None = None, head: bool = True) -> dict[str, Array]:
        dlv2 = lambda classes: lambda name: DLV2Head(classes, self.dilations, self.dtype, name=name)
        attention = None if self.attention == "fixed" else dlv2(self._outputs_of_attention())
        decode = HRDAHead(dlv2(self.num_classes), attention, name="decode_head") if head else None
        return self._answer(resnet_of(self.backbone, self.width, self.remat, self.dtype), decode, image, corner, train, stride=8)
