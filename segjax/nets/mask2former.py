"""Mask2Former (Cheng et al. 2022, arXiv 2112.01527): a class and a mask for every query, over any backbone with four maps.

Source: facebookresearch/Mask2Former; CLOUDS (yasserben/CLOUDS) is the same network over a frozen CLIP (backbone "clip_convnext" or
"clip_resnet", normalization "clip", frozen).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.nets import clip
from segjax.nets.clip_resnet import ModifiedResNet, masked_attention_pool
from segjax.nets.convnext import ConvNeXt, ConvNeXtTower, masked_head
from segjax.nets.deeplab import normalise
from segjax.nets.mask_classifiers import KINDS, with_void
from segjax.nets.mask_decoder import MaskDecoder
from segjax.nets.mit import MixTransformer
from segjax.nets.pixel_decoder import PixelDecoder
from segjax.nets.resnet import ResNet
from segjax.nets.swin import Swin
from segjax.ops.mask_classification import semantic_map
from segjax.ops.open_vocabulary import cosine_logits, geometric_ensemble
from segjax.ops.resize import bilinear
from segjax.typing import Array

BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "swin": (Swin, {}),
    "resnet": (ResNet, dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), style="torchvision")),
    "mit": (MixTransformer, {}),
    "convnext": (ConvNeXt, {}),
    "clip_convnext": (ConvNeXtTower, {}),
    "clip_resnet": (ModifiedResNet, {}),
}
"""Name -> module and the defaults that differ from its own."""


class Mask2Former(nn.Module):
    """Mask2Former over RGB images [B,H,W,3] in [0,1].

    backbone: a module whose maps at strides 4, 8, 16 and 32 are a list, or res2 to res5 of a dict. channels: of the pixel decoder;
    decoder_channels: of the queries; mask_channels: of the mask features. encoder_layers, encoder_hidden: of the pixel decoder.
    decoder_layers: public configurations count one more. frozen: the backbone runs as in evaluation also in training and gets no gradient.
    normalization: as `nets.deeplab.normalise`, or "clip". size_divisor: images are filled up with zeros, after normalising, at the right
    and below to a multiple of it. loss_weights: keep the weights of the classes that public files hold for their loss, as
    batch_stats/class_weight [K] and no_object_weight [1]. `backbone`, `pixel_decoder` and `decoder` are the parts of the parameters.

    class_head: of `nets.mask_classifiers.KINDS`. ensemble: answers (not losses) join the classifier's classes with those of the frozen
    CLIP's own features inside of each mask (`ops.open_vocabulary.geometric_ensemble`); ensemble_on_valid_mask: where the mask holds a
    location of these. seen: which classes were trained on, default all. Both need words: synonyms says how many each class has, embed_dim
    how long their vectors are; batch_stats/words [S,E] holds them (`with_words`) and batch_stats/clip_logit_scale CLIP's own scale. All of
    it is off in the released configurations of CLOUDS; there the teacher's answers have a switch of their own.
    """

    backbone: Any
    num_classes: int
    channels: int = 256
    mask_channels: int = 256
    decoder_channels: int = 256
    heads: int = 8
    points: int = 4
    encoder_layers: int = 6
    encoder_hidden: int = 1024
    fpn_levels: int = 1
    queries: int = 100
    decoder_layers: int = 9
    decoder_hidden: int = 2048
    pre_norm: bool = False
    activation: str = "relu"
    project: bool = False
    frozen: bool = False
    normalization: str = "imagenet"
    size_divisor: int = 32
    loss_weights: bool = False
    class_head: str = "linear"
    synonyms: tuple[int, ...] = ()
    embed_dim: int = 0
    ensemble: bool = False
    ensemble_alpha: float = 0.4
    ensemble_beta: float = 0.8
    ensemble_on_valid_mask: bool = False
    seen: tuple[bool, ...] = ()
    unroll: int = 1
    dtype: DTypeLike = jnp.float32
    align_corners: bool = False

    def setup(self):
        shared: dict[str, Any] = dict(heads=self.heads, unroll=self.unroll, dtype=self.dtype)
        self.pixel_decoder = PixelDecoder(
            channels=self.channels,
            mask_channels=self.mask_channels,
            points=self.points,
            layers=self.encoder_layers,
            hidden=self.encoder_hidden,
            fpn_levels=self.fpn_levels,
            **shared,
        )
        self.decoder = MaskDecoder(
            num_classes=self.num_classes,
            channels=self.decoder_channels,
            queries=self.queries,
            layers=self.decoder_layers,
            hidden=self.decoder_hidden,
            pre_norm=self.pre_norm,
            activation=self.activation,
            project=self.project,
            class_head=self.class_head,
            synonyms=tuple(self.synonyms),
            **shared,
        )
        kept = lambda name, shape, value: self.variable("batch_stats", name, jnp.full, shape, value, jnp.float32)
        if self.loss_weights:
            self.class_weight = kept("class_weight", (self.num_classes,), 1.0)
            self.no_object_weight = kept("no_object_weight", (1,), 0.1)
        if self._check_words():
            self.words = kept("words", (sum(self.synonyms), self.embed_dim), 0.0)
            self.void_embedding = self.param("void_embedding", nn.initializers.normal(1.0), (1, self.embed_dim))
        if self.ensemble:
            self.clip_logit_scale = kept("clip_logit_scale", (), float(np.log(100.0)))

    @property
    def reads_words(self) -> bool:
        """Whether its classes, or some of its answers, come from words."""
        return self.ensemble or self.class_head == "text"

    def _check_words(self) -> bool:
        """`reads_words`. ConfigError: it cannot."""
        if self.class_head not in KINDS:
            raise ConfigError(f"model.class_head={self.class_head!r}: expected one of {', '.join(KINDS)}")
        if self.ensemble and not isinstance(self.backbone, ConvNeXtTower | ModifiedResNet):
            raise ConfigError(f"model.ensemble asks the backbone for its own classes, and {type(self.backbone).__name__} is no CLIP")
        if self.ensemble and self.embed_dim != self.backbone.embed_dim:
            told = f"its vectors have {self.backbone.embed_dim} numbers"
            raise ConfigError(f"model.embed_dim={self.embed_dim}: ensemble compares words with the backbone's own answers, and {told}")
        countable = len(self.synonyms) == self.num_classes and min(self.synonyms) > 0 and self.embed_dim > 0
        if self.reads_words and not countable:
            told = f"synonyms={tuple(self.synonyms)}, embed_dim={self.embed_dim}"
            raise ConfigError(f"model: {told}: expected a number of words for each of {self.num_classes} classes, and their length")
        return self.reads_words

    def __call__(self, image: Array, train: bool = False) -> dict[str, Any]:
        """`answer` of `features`."""
        return self.answer(self.features(image, train), (image.shape[1], image.shape[2]))

    def answer(self, maps: list[Array], size: tuple[int, int]) -> dict[str, Any]:
        """`predictions` for the backbone's maps of images of `size`, and logits [B,*size,K]: the semantic map (`ops.mask_classification`)
        at the image's size, float32, not negative. Under jit only what is used of them is computed.
        """
        found = self.predictions(maps)
        if self.ensemble:
            found |= {"class_logits": self._ensembled(found, maps[-1])}
        height, width = (side + -side % self.size_divisor for side in size)
        return found | {"logits": semantic_map(found["class_logits"], found["mask_logits"], (height, width), size)}

    def features(self, image: Array, train: bool = False) -> list[Array]:
        """The backbone's four maps, fine to coarse, of an image [B,H,W,3] in [0,1]. ConfigError: it has another number of them."""
        x = _normalised(image.astype(jnp.float32), self.normalization)
        x = jnp.pad(x, ((0, 0), *((0, -size % self.size_divisor) for size in x.shape[1:3]), (0, 0)))
        maps = self.backbone(x, train and not self.frozen)
        maps = [maps[f"res{n}"] for n in range(2, 6)] if isinstance(maps, dict) else list(maps)
        if len(maps) != 4:
            raise ConfigError(f"Mask2Former over a backbone with {len(maps)} maps: expected 4, at strides 4, 8, 16 and 32")
        return [jax.lax.stop_gradient(x) for x in maps] if self.frozen else maps

    def predictions(self, maps: list[Array]) -> dict[str, Any]:
        """What `MaskDecoder` returns for the backbone's maps."""
        return self.decoder(*self.pixel_decoder(maps), self._text() if self._check_words() else None)

    def _text(self) -> Array:
        return with_void(jax.lax.stop_gradient(self.words.value), self.void_embedding)

    def _ensembled(self, found: dict[str, Any], top: Array) -> Array:
        """Class logits [B,Q,K+1] of both vocabularies. top: the backbone's last map."""
        masks = bilinear(found["mask_logits"], (top.shape[1], top.shape[2]))
        look: Any = masked_attention_pool if isinstance(self.backbone, ModifiedResNet) else masked_head
        vectors = look(self.backbone, self.backbone.variables["params"], top, masks)
        outside = cosine_logits(vectors, self._text(), self.clip_logit_scale.value, self.synonyms)
        valid = (masks > 0).any((1, 2)) if self.ensemble_on_valid_mask else None
        seen, told = self.seen or (True,) * self.num_classes, dict(alpha=self.ensemble_alpha, beta=self.ensemble_beta)
        return geometric_ensemble(found["class_logits"], outside, seen, **told, valid=valid)

    def described(self) -> dict[str, Any]:
        """The flat settings with which `mask2former` builds this network."""
        kind = next((kind for kind, (module, _) in BACKBONES.items() if type(self.backbone) is module), "")
        own = {f"backbone_{name}": getattr(self.backbone, name) for name in _fields(self.backbone, "unroll", "remat", "dtype")}
        return {"backbone": kind, **own}


def mask2former(*, num_classes: int, backbone: str = "swin", unroll: int = 1, dtype: DTypeLike = jnp.float32, **fields: Any) -> Mask2Former:
    """A Mask2Former from flat settings, as a config or a converted file has them.

    backbone: one of BACKBONES. fields: `backbone_X` are the fields X of the backbone, e.g. backbone_depths; the others Mask2Former's.
    ConfigError: another backbone. TypeError: a field that there is not.
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"model.backbone={backbone!r}: expected one of {', '.join(BACKBONES)}")
    module, defaults = BACKBONES[backbone]
    shared: dict[str, Any] = dict(unroll=unroll, dtype=dtype)
    own = {name.removeprefix("backbone_"): _plain(value) for name, value in fields.items() if name.startswith("backbone_")}
    rest = {name: value for name, value in fields.items() if not name.startswith("backbone_")}
    return Mask2Former(module(**{**defaults, **own, **shared}), num_classes=num_classes, **rest, **shared)


def with_words(variables: dict[str, Any], words: Array) -> dict[str, Any]:
    """The variables with the text embeddings [S,E] in them, made of length 1: a vector a synonym, class by class, e.g. the mean over prompt
    templates (`verbs.words`). ConfigError: another shape than the network has."""
    there = variables["batch_stats"].get("words")
    if there is None or there.shape != words.shape:
        raise ConfigError(
            f"words {list(words.shape)}: the network has {'none' if there is None else list(there.shape)}: see synonyms, embed_dim"
        )
    words = jnp.asarray(words, jnp.float32)
    words = words / jnp.linalg.norm(words, axis=-1, keepdims=True)
    return {**variables, "batch_stats": {**variables["batch_stats"], "words": words}}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has lists


def _fields(module: nn.Module, *without: str) -> list[str]:
    return [field.name for field in dataclasses.fields(module) if field.name not in ("parent", "name", *without)]


def _normalised(image: Array, kind: str) -> Array:
    return (image - jnp.asarray(clip.MEAN)) / jnp.asarray(clip.STD) if kind == "clip" else normalise(image, kind)
