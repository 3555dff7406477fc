"""CLIP: a vision tower and a text tower that meet in one space (Radford et al. 2021, arXiv 2103.00020)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from segjax.nets.clip_resnet import ModifiedResNet
from segjax.nets.clip_text import TextTransformer
from segjax.nets.convnext import ConvNeXtTower
from segjax.nets.vit import VisionTransformer
from segjax.typing import Array

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that OpenAI trained on; nearly every public CLIP uses them."""
TOWERS = {"vit": VisionTransformer, "resnet": ModifiedResNet, "convnext": ConvNeXtTower}


class CLIP(nn.Module):
    """Both towers and the temperature between them. Images are float RGB in [0,1], normalised here.

    visual: a VisionTransformer, ModifiedResNet or ConvNeXtTower. text: a TextTransformer with the same `embed_dim`.
    """

    visual: Any
    text: TextTransformer
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def setup(self):
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(np.log(1 / 0.07)), ())

    def __call__(self, image: Array, ids: Array, train: bool = False) -> dict[str, Array]:
        """image [B,H,W,3], ids int [T,N] -> image_embeds [B,E] and text_embeds [T,E] of length 1, logits_per_image [B,T]; float32."""
        images = normalized(self.encode_image(image, train)["projected"])
        texts = normalized(self.encode_text(ids)["projected"])
        logits = jnp.exp(self.logit_scale) * jnp.matmul(images, texts.T)
        return {"image_embeds": images, "text_embeds": texts, "logits_per_image": logits}

    def encode_image(self, image: Array, train: bool = False, **options: Any) -> dict[str, Array]:
        """What the vision tower returns for images [B,H,W,3] in [0,1]; options: its own."""
        return self.visual((image - jnp.asarray(self.mean)) / jnp.asarray(self.std), train, **options)

    def encode_text(self, ids: Array, **options: Any) -> dict[str, Array]:
        """What the text tower returns for ids [T,N]; options: its own."""
        return self.text(ids, **options)

    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arguments of a call, for shapes."""
        return (*self.visual.example(), *self.text.example())

    def described(self) -> dict[str, Any]:
        """The flat settings with which `clip` builds this network."""
        kind = next(kind for kind, tower in TOWERS.items() if isinstance(self.visual, tower))
        parts = {
            f"{prefix}{name}": value for prefix, tower in (("vision_", self.visual), ("text_", self.text)) for name, value in _own(tower)
        }
        return {"vision": kind, "embed_dim": self.text.embed_dim, **parts}


def _own(tower: nn.Module) -> list[tuple[str, Any]]:
    """A tower's fields and their values, without what `clip` gives to both."""
    shared = ("embed_dim", "unroll", "dtype", "parent", "name")
    return [(field.name, getattr(tower, field.name)) for field in dataclasses.fields(tower) if field.name not in shared]


def normalized(x: Array) -> Array:
    """Vectors of length 1 over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def clip(
    *,
    vision: str,
    embed_dim: int,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
    unroll: int = 1,
    dtype: DTypeLike = jnp.float32,
    **fields: Any,
) -> CLIP:
    """A CLIP from flat settings, as a config or a converted file has them.

    vision: "vit", "resnet" or "convnext". fields: `vision_X` and `text_X` are the fields X of the towers, e.g. vision_width, text_heads.
    ValueError: another tower. TypeError: a field that the tower does not have.
    """
    if vision not in TOWERS:
        raise ValueError(f"vision={vision!r}: expected one of {', '.join(TOWERS)}")
    if unknown := [name for name in fields if not name.startswith(("vision_", "text_"))]:
        raise ValueError(f"{', '.join(unknown)}: expected fields of the towers, vision_X or text_X")
    shared: dict[str, Any] = dict(embed_dim=embed_dim, unroll=unroll, dtype=dtype)
    visual = TOWERS[vision](**shared, **_fields(fields, "vision_"))
    return CLIP(visual, TextTransformer(**shared, **_fields(fields, "text_")), tuple(mean), tuple(std))


def _fields(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The settings with a prefix, without it; lists (JSON's) as tuples."""
    found = {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
